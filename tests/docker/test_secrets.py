"""How secrets come to a process: made at random, read from files, never from the command line."""

import json
import os
import subprocess
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "docker"


def with_secrets(folder: Path, *words: str, **how) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "SECRETS_FOLDER": str(folder)}
    return subprocess.run([DOCKER / "with-secrets", *words], env=environment, capture_output=True, text=True, **how)


@pytest.fixture
def made(tmp_path) -> Path:
    subprocess.run([DOCKER / "make-secrets", tmp_path / "secrets"], check=True)
    return tmp_path / "secrets"


def test_each_file_is_a_variable_of_the_command_with_its_words_untouched(tmp_path):
    (tmp_path / "A_KEY").write_text("two words $HOME `id`\n")
    (tmp_path / "s3.json").write_text("{}")
    (tmp_path / "..data").mkdir()  # as Kubernetes mounts a secret
    done = with_secrets(tmp_path, "printenv", "A_KEY")
    assert done.stdout == "two words $HOME `id`\n"
    assert "s3" not in with_secrets(tmp_path, "env").stdout.replace(str(tmp_path), "")
    assert with_secrets(tmp_path, "sh", "-c", "exit 7").returncode == 7


def test_without_secrets_the_command_runs_all_the_same(tmp_path):
    assert with_secrets(tmp_path / "none", "echo", "here").stdout == "here\n"


def test_a_secret_that_cannot_be_read_is_named(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not read the file")
    (tmp_path / "A_KEY").write_text("hidden")
    (tmp_path / "A_KEY").chmod(0o600)
    tmp_path.chmod(0o755)
    # Into the folder as root, then somebody else: a test's folders are closed to others.
    become = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    script = (DOCKER / "with-secrets").read_text()
    environment = {"PATH": os.environ["PATH"], "SECRETS_FOLDER": "."}
    done = subprocess.run(
        [*become, "bash", "-c", script, "with-secrets", "true"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "A_KEY can't be read by user 10001" in done.stderr


def test_what_is_made_is_long_random_and_closed_to_others(made, tmp_path):
    subprocess.run([DOCKER / "make-secrets", tmp_path / "more"], check=True)
    for name in ("DAGSTER_PG_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        secret = (made / name).read_text()
        assert len(secret) == 48 and set(secret) <= set("0123456789abcdef")
        assert secret != (tmp_path / "more" / name).read_text()
    assert made.stat().st_mode & 0o777 == 0o700
    (identity,) = json.loads((made / "s3.json").read_text())["identities"]
    key, secret = ((made / name).read_text() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    assert identity["credentials"] == [{"accessKey": key, "secretKey": secret}]


def test_secrets_that_are_there_are_kept(made):
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    (made / "DAGSTER_PG_PASSWORD").chmod(0o644)
    (made / "DAGSTER_PG_PASSWORD").write_text("mine")
    subprocess.run([DOCKER / "make-secrets", made], check=True)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before | {"DAGSTER_PG_PASSWORD": b"mine"}


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("replaced", ["deleted", "written"])
def test_a_key_that_was_replaced_reaches_the_s3_server(made, name, replaced):
    (made / name).unlink()
    if replaced == "written":
        (made / name).write_text("mine")
    subprocess.run([DOCKER / "make-secrets", made], check=True)
    (identity,) = json.loads((made / "s3.json").read_text())["identities"]
    key, secret = ((made / each).read_text() for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    assert identity["credentials"] == [{"accessKey": key, "secretKey": secret}]
    assert (made / "s3.json").stat().st_mode & 0o777 == 0o444
