"""`m3po inspect` as a command: it says what is wrong, and serves until it is told to stop."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_study import some_prompts
from typer.testing import CliRunner

from m3po_dagster.cli.main import app

ROOT = Path(__file__).parents[2]


def environment(made_study) -> dict[str, str]:
    return {**os.environ, "DAGSTER_HOME": str(made_study.folder / "home")}


def options(made_study) -> list[str]:
    return ["inspect", "--no-open", "--study", str(made_study.path)]


@contextmanager
def served(made_study, *words: str, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """The running command, the address that it says, and the file with what it says on standard error."""
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", *options(made_study), *words]
    said = made_study.folder / "said.txt"
    with said.open("w") as errors:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield server, re.match(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0], said
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def test_a_bad_study_and_a_taken_port_get_a_sentence(made_study):
    runner = CliRunner(env=environment(made_study))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = runner.invoke(app, [*options(made_study), "--port", port])
    assert result.exit_code == 1 and f"port {port} of 127.0.0.1 can't be used" in result.stderr
    assert "choose another with --port" in result.stderr
    made_study.path.write_text("name: [")
    result = runner.invoke(app, options(made_study))
    assert result.exit_code == 2 and "not valid YAML" in result.stderr


def test_a_store_that_is_asked_for_must_be_there(made_study):
    runner, nowhere = CliRunner(env=environment(made_study)), made_study.folder / "nowhere"
    for name in (str(nowhere), nowhere.as_uri()):
        result = runner.invoke(app, [*options(made_study), "--store", name])
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith(f"error: there is no store at {nowhere}: run a study first")
        same = runner.invoke(app, ["lineage", "adapter", "m3po", "--store", name])
        assert (same.exit_code, same.stderr) == (result.exit_code, result.stderr)
    assert not nowhere.exists() and not (made_study.folder / "home").exists()


def test_the_place_of_a_store_to_come_is_watched(made_study):
    """The first `m3po ui` starts the inspector before any run."""
    nowhere = made_study.folder / "nowhere"
    there = {**environment(made_study), "M3PO_STORE": str(nowhere)}
    with served(made_study, "--port", "0", environment=there) as (_, address, said):
        assert f"there is no store at {nowhere} yet" in said.read_text()
        with urllib.request.urlopen(f"{address}/static/style.css") as answer:
            assert answer.status == 200


BROKEN = {
    "dagster.yaml": "telemetry: [",
    "history/runs.db": "no database" * 100,
    "history/runs/index.db": "no database" * 100,
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_event_log_that_can_not_be_read_is_a_sentence(made_study, name):
    home = made_study.folder / "home"
    file = home / name
    file.parent.mkdir(parents=True)
    file.write_text(BROKEN[name])
    command = [*options(made_study), "--port", "0"]
    environment_here = {**environment(made_study), "M3PO_STORE": str(made_study.store.root)}
    made_study.add_shard("s0", some_prompts(1))
    words = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", *command]
    done = subprocess.run(words, cwd=ROOT, env=environment_here, capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith(f"error: Dagster's event log in {home} can't be read: ")
    assert "dagster.yaml" in line and "everything in the store is found again" in line


def test_it_serves_on_loopback_until_it_is_stopped(made_study):
    with served(made_study, "--port", "0", environment=environment(made_study)) as (server, address, said):
        with urllib.request.urlopen(f"{address}/static/style.css") as answer:
            assert answer.headers["content-type"].startswith("text/css") and "server" not in answer.headers
        listening = Path(f"/proc/{server.pid}/net/tcp").read_text()
        assert f"0100007F:{int(address.rpartition(':')[2]):04X} 00000000:0000 0A" in listening
        # Links that were made for another port go on leading there.
        assert "links in the Dagster UI keep the inspector's address of when the asset was made" in said.read_text()
    assert server.wait(30) in (0, 130, -signal.SIGINT)


def test_starting_it_loads_no_torch(made_study):
    code = (
        "import sys\n"
        "from m3po_dagster.cli.main import app\n"
        "import m3po_dagster.inspector.server\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'peft', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
