"""compose.yaml: valid by the specification's schema, closed to the outside, and true to the files it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docker import compose_file, dockerfile

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
OURS = {"bucket", "code", "webserver", "daemon"}
LAYERS = [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml"), ("compose.yaml", "compose.aws.yaml")]
ENDPOINT = "AWS_ENDPOINT_URL_S3"
AMAZON = {"M3PO_BUCKET": "my-bucket", "AWS_DEFAULT_REGION": "eu-central-1"}
services = pytest.fixture(lambda: compose_file.load()["services"])


@pytest.mark.parametrize("files", LAYERS, ids=lambda files: files[-1])
def test_it_is_valid_by_the_schema_with_every_default_filled_in(files, tmp_path):
    merged = tmp_path / "compose.yaml"
    merged.write_text(yaml.safe_dump(compose_file.load(AMAZON, *files), sort_keys=False))
    assert "${" not in merged.read_text()
    # The checker doesn't know compose's own tags, which only a layer has.
    done = _check(merged, *(DOCKER / name for name in files if name != "compose.aws.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_would_refuse_a_mistake(tmp_path):
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DOCKER / "compose.yaml").read_text().replace("healthcheck:", "health_check:"))
    assert _check(wrong).returncode != 0


def _check(*files: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_service_is_there(services):
    assert set(services) == OURS | {"postgres", "s3", "judge", "generator"}
    assert {name for name, told in services.items() if "profiles" in told} == {"judge", "generator"}


def test_only_the_web_server_is_published_and_on_this_machine_alone(services):
    assert {name: told["ports"] for name, told in services.items() if "ports" in told} == {
        "webserver": ["127.0.0.1:3000:3000"]
    }
    assert compose_file.load()["networks"]["inside"]["internal"] is True
    assert {name for name, told in services.items() if "outside" in told["networks"]} == {"code", "webserver"}


def test_nothing_has_a_capability_or_can_gain_one(services):
    for name, told in services.items():
        assert told["cap_drop"] == ["ALL"] and told["security_opt"] == ["no-new-privileges:true"], name
        assert not told.get("privileged") and "docker.sock" not in str(told), name


def test_nothing_runs_as_root(services):
    images = dockerfile.stages(DOCKER / "Dockerfile")
    for name, told in services.items():
        user = told.get("user") or images["s3" if name == "s3" else "dagster"].user
        assert int(user.split(":")[0]) > 0, name


def test_images_have_an_exact_tag_and_can_be_given_by_digest(services):
    for name, told in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", told["image"]), name
    digest = "python@sha256:" + "0" * 64
    given = {name: digest for name in compose_file.variables() if name.endswith("IMAGE")}
    overridden = compose_file.load(given, *LAYERS[1])["services"]
    assert {told["image"] for told in overridden.values()} == {digest}


def test_images_that_are_built_here_are_built_by_somebody():
    for files in LAYERS:
        services = compose_file.load(AMAZON, *files)["services"]
        built = {told["image"] for told in services.values() if "build" in told}
        assert {told["image"] for name, told in services.items() if name in OURS | {"s3"}} == built
        for told in services.values():
            if "build" in told:
                path = (DOCKER / told["build"]["context"] / told["build"]["dockerfile"]).resolve()
                assert told["build"]["target"] in dockerfile.stages(path)


def test_all_that_stays_up_has_a_health_check_and_is_waited_for(services):
    for name, told in services.items():
        if name != "bucket":  # ends when it has made the bucket
            assert told["healthcheck"]["test"][0] == "CMD", name
        for awaited, how in told.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if awaited == "bucket" else "service_healthy"
            assert how["condition"] == wanted, (name, awaited)


def test_what_is_mounted_is_there_and_every_volume_is_declared(services):
    declared = compose_file.load()["volumes"]
    used = set()
    for told in services.values():
        for source, target, read_only in compose_file.mounts(told):
            if not compose_file.is_path(source):
                used.add(source)
                continue
            assert read_only, source
            assert compose_file.path_of(source).exists() or target == "/models", source
    assert used == set(declared)


def test_with_a_bucket_of_amazons_nothing_of_the_own_s3_server_is_left(services):
    with pytest.raises(KeyError, match="M3PO_BUCKET must be given"):
        compose_file.load({}, *LAYERS[2])
    there = compose_file.load(AMAZON, *LAYERS[2])["services"]
    assert set(there) == set(services) - {"s3", "bucket"}
    amazons = {**AMAZON, "M3PO_STORE": "s3://my-bucket/store"}
    for name, told in there.items():
        assert set(told.get("depends_on", {})) <= set(there), name
        assert "s3.json" not in told.get("secrets", ()), name
        own = services[name].get("environment", {})
        if name in OURS:
            assert told["environment"] == {key: value for key, value in (own | amazons).items() if key != ENDPOINT}
            assert "outside" in told["networks"], name
            assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(told["secrets"]), name
        else:
            assert told == services[name], name
    assert there["code"]["depends_on"] == {"postgres": services["code"]["depends_on"]["postgres"]}


def test_secrets_are_files_that_the_script_writes_and_git_ignores(tmp_path):
    folder = tmp_path / "secrets"
    subprocess.run([DOCKER / "make-secrets", folder], check=True)
    merged = compose_file.load()
    for name, told in merged["secrets"].items():
        assert (folder / name).read_text().strip()
        ignored = subprocess.run(["git", "check-ignore", "-q", f"docker/{told['file']}"], cwd=ROOT)
        assert ignored.returncode == 0, told["file"]
    used = {name for told in merged["services"].values() for name in told.get("secrets", ())}
    assert used == set(merged["secrets"])
    assert subprocess.run(["git", "check-ignore", "-q", "docker/keys.env"], cwd=ROOT).returncode == 0


def test_no_secret_stands_in_any_file_of_the_folder(services):
    for name, told in services.items():
        for variable in told.get("environment", {}):
            assert variable.endswith("_FILE") or not re.search("PASSWORD|SECRET|KEY|TOKEN", variable), (name, variable)
    for path in DOCKER.iterdir():
        words = re.findall(r"[A-Za-z0-9+=]{24,}", path.read_text()) if path.is_file() else []
        assert [word for word in words if re.search("[0-9]", word) and re.search("[a-z]", word)] == [], path.name


def test_dagster_yaml_finds_each_variable_it_names(services):
    asked = set(_environment_of(yaml.safe_load((DOCKER / "dagster.compose.yaml").read_text())))
    for name in OURS - {"bucket"}:
        assert asked <= set(services[name]["environment"]) | set(services[name]["secrets"]), name


def _environment_of(settings: object) -> list[str]:
    if isinstance(settings, dict):
        if set(settings) == {"env"}:
            return [settings["env"]]
        return [name for value in settings.values() for name in _environment_of(value)]
    return []


def test_the_workspace_names_the_service_and_its_port(services):
    (found,) = yaml.safe_load((DOCKER / "workspace.yaml").read_text())["load_from"]
    server, command = found["grpc_server"], services["code"]["command"]
    assert server["host"] == "code" and command[command.index("-p") + 1] == str(server["port"])


def test_the_studies_default_is_one_that_is_there(services):
    assert (ROOT / services["code"]["environment"]["M3PO_STUDY"].removeprefix("/srv/m3po/")).is_file()


def test_every_variable_is_explained():
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert [name for name in sorted(compose_file.variables()) if f"`{name}`" not in page] == []
