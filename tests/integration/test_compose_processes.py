"""The images' commands in environments made as the Dockerfiles say, and compose.yaml's services over them, for real.

Only an engine is missing: kernel namespaces stand in for containers, this machine's Python for the base image, this
machine's Postgres for its image.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docker import compose_file, dockerfile
from tests.docker.processes import Database, Network, Service
from tests.integration.conftest import WEIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first one waits for 2 GB of packages
DOCKER = compose_file.DOCKER
INSIDE = "/srv/m3po"
NAMES = ("postgres", "s3", "bucket", "code", "webserver", "daemon")
POST = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def _can_isolate() -> bool:
    tried = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    return os.geteuid() == 0 and subprocess.run(tried).returncode == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Iterator[dict[str, tuple[dockerfile.Stage, Path]]]:
    """The stages of docker/Dockerfile, each with the folder that its image would have as /srv."""
    if not _can_isolate():
        message = "making namespaces needs root and `unshare`"
        pytest.fail(message) if os.environ.get("M3PO_REQUIRE_NAMESPACES") else pytest.skip(message)
    folder = tmp_path_factory.mktemp("images")
    found = dockerfile.stages(DOCKER / "Dockerfile")
    made = {name: folder / name for name in found}
    for name, stage in found.items():
        # torch from pip's own index: its CPU index can't be reached from every machine that runs this.
        dockerfile.build(stage, made[name], made, {"TORCH_INDEX": ""})
    yield {name: (stage, made[name]) for name, stage in found.items()}
    shutil.rmtree(folder)  # 2 GB, which pytest would keep


@pytest.fixture(scope="module")
def study(small_study, world, tmp_path_factory) -> Path:
    """A folder with a study whose paths are those of a container; its files are the data volume's."""
    folder = tmp_path_factory.mktemp("studies")
    text = json.dumps(small_study | {"automation": {"look_every": 5, "retry_after": 1, "training": "by_hand"}})
    text = text.replace(str(world), f"{INSIDE}/data").replace(str(WEIGHTS), f"{INSIDE}/m3po_dagster/world/weights")
    (folder / "small.yaml").write_text(yaml.safe_dump(json.loads(text)))
    for place in (folder, world, *folder.rglob("*"), *world.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    return folder


def test_the_cuda_image_adds_what_4_bit_weights_need_and_nothing_else(images):
    stage = dockerfile.stages(DOCKER / "Dockerfile.gpu")["build"]
    installs = [text for word, text in stage.steps if word == "RUN" and "pip install" in text]
    assert len(installs) == 2
    printed = ""
    for text in installs:
        # Over the small image's environment; the link to the package is there already, so is its folder.
        tried = text.replace("pip install", "pip install --dry-run").replace("mkdir ", "mkdir -p ")
        printed += dockerfile.run(images["build"][1], "/srv/m3po", stage.environment | stage.arguments, tried)
    (would,) = [line.split() for line in printed.splitlines() if line.startswith("Would install")]
    assert {word.rpartition("-")[0] for word in would[2:]} == {"bitsandbytes", "m3po-dagster"}


class System:
    """Everything that compose.yaml starts without a profile, up and healthy."""

    def __init__(self, folder: Path, images: dict, variables: dict[str, str], network: Network) -> None:
        self.network, self.secrets = network, folder / "secrets"
        subprocess.run([DOCKER / "make-secrets", self.secrets], check=True)
        told = compose_file.load(variables)["services"]
        (folder / "volumes").mkdir()
        self.database = Database(told["postgres"], network, self.secrets)
        self.services = {
            name: Service(
                name,
                told[name],
                *images["s3" if name == "s3" else "dagster"],
                network,
                folder / "volumes",
                self.secrets,
            )
            for name in NAMES
            if name != "postgres"
        }

    def up(self) -> None:
        """Starts the services in the order that the compose file asks for, each once those before are healthy."""
        self.database.start()
        for name in NAMES[1:]:
            self.services[name].start()
            if name == "bucket":
                assert self.services[name].process.wait(60) == 0, self.services[name].log.read_text()
            else:
                self.services[name].until_healthy()

    def down(self) -> None:
        for service in self.services.values():
            service.kill()
        self.database.stop()

    def ask(self, query: str, **variables: object) -> dict:
        """The web server's answer to a GraphQL query."""
        body = json.dumps({"query": query, "variables": variables})
        words = [*self.network.enter, sys.executable, "-c", POST, "http://127.0.0.1:3000/graphql"]
        done = subprocess.run(words, input=body, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def logs(self) -> str:
        """What a failed wait prints."""
        return "\n".join(f"== {name}\n{service.log.read_text()[-3000:]}" for name, service in self.services.items())


@pytest.fixture(scope="module")
def system(images, study, world, tmp_path_factory):
    """The running system over the small study."""
    folder = tmp_path_factory.mktemp("compose")
    variables = {"M3PO_STUDIES": str(study), "STUDY": "studies/small.yaml", "M3PO_DATA": str(world)}
    with Network(folder, list(NAMES)) as network:
        found = System(folder, images, variables, network)
        try:
            found.up()
            yield found
        finally:
            found.down()


LOCATION = {"repositoryLocationName": "m3po_dagster.definitions", "repositoryName": "__repository__"}
LAUNCH = """mutation ($given: ExecutionParams!) {
  launchRun(executionParams: $given) { ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
RUNS = """query ($filter: RunsFilter!) {
  runsOrError(filter: $filter) { ... on Runs { results { runId status assetSelection { path } tags { key value } } } }
}"""
EVENTS = """query ($run: ID!) {
  logsForRun(runId: $run) { ... on EventConnection { events {
    __typename ... on LogsCapturedEvent { fileKey }
  } } }
}"""
CAPTURED = "query ($key: [String!]!) { capturedLogs(logKey: $key) { stderr } }"
RELOAD = "mutation ($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }"
RECIPES = '{ assetNodeOrError(assetKey: {path: ["recipe_config"]}) { ... on AssetNode { partitionKeys } } }'
START = "mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) { __typename } }"


def runs(system: System, **wanted: object) -> list[dict]:
    """The runs that a filter finds, the newest first."""
    return system.ask(RUNS, filter=wanted)["runsOrError"]["results"]


def until(holds, system: System, seconds: float = 240):
    """What `holds()` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, system.logs()
        time.sleep(0.2)
    return found


def test_a_run_from_the_queue_ends_well_and_what_it_wrote_is_in_the_bucket(system):
    selector = {**LOCATION, "jobName": "__ASSET_JOB", "assetSelection": [{"path": ["source_dataset"]}]}
    launched = system.ask(LAUNCH, given={"selector": selector, "runConfigData": {}})["launchRun"]
    run = launched["run"]["runId"]
    until(lambda: runs(system, runIds=[run], statuses=["SUCCESS", "FAILURE"]), system)
    events = system.ask(EVENTS, run=run)["logsForRun"]["events"]
    kinds = [event["__typename"] for event in events]
    wanted = ["RunEnqueuedEvent", "RunStartingEvent", "MaterializationEvent", "RunSuccessEvent"]
    assert [kind for kind in kinds if kind in wanted] == wanted, f"{kinds}\n{system.logs()}"

    (step,) = [event["fileKey"] for event in events if event["__typename"] == "LogsCapturedEvent"]
    shown = system.ask(CAPTURED, key=[run, "compute_logs", step])["capturedLogs"]["stderr"]
    assert "source_dataset" in shown, "read by the web server, which has no other way to it than the bucket"
    listed = "import boto3; print(*(o['Key'] for o in boto3.client('s3').list_objects_v2(Bucket='m3po')['Contents']))"
    keys = system.services["code"].run(["with-secrets", "python", "-c", listed]).stdout.split()
    assert any(key.startswith(f"compute-logs/storage/{run}/") for key in keys), keys
    assert any(key.startswith("store/source_dataset/") for key in keys), keys

    status = system.services["code"].run(["with-secrets", "m3po", "status"])
    assert re.search(r"^source_dataset +1 fresh$", status.stdout, re.MULTILINE), status.stdout + status.stderr


def test_secrets_are_nowhere_but_in_their_files(system):
    values = [path.read_text() for path in system.secrets.iterdir() if path.suffix != ".json"]
    assert len(values) == 3
    for service in system.services.values():
        assert not any(value in service.log.read_text() for value in values), service.name
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        words = process.read_bytes().decode(errors="replace") if process.exists() else ""
        assert not any(value in words for value in values), words


def test_a_new_recipe_is_there_once_the_web_server_is_told_to_reload(system, study):
    before = set(system.ask(RECIPES)["assetNodeOrError"]["partitionKeys"])
    told = yaml.safe_load((study / "small.yaml").read_text())
    told["recipes"]["more"] = told["recipes"]["m3po"] | {"selection": {"rule": "m3p", "alpha": 0}}
    (study / "small.yaml").write_text(json.dumps(told))  # JSON is YAML; no aliases for what stands twice
    system.ask(RELOAD, name=LOCATION["repositoryLocationName"])
    assert set(system.ask(RECIPES)["assetNodeOrError"]["partitionKeys"]) == before | {"more"}


def test_a_container_that_is_killed_takes_no_place_with_it_and_its_work_is_done_by_the_next(system):
    code = system.services["code"]
    for sensor in ("watch_outside", "keep_up"):
        system.ask(START, sensor={**LOCATION, "sensorName": sensor})
    (cut,) = until(lambda: _caught_at_work(system, code), system)
    code.kill()
    code.start()
    code.until_healthy()

    def ended() -> list[dict]:
        return [run for run in runs(system, runIds=[cut["runId"]]) if run["status"] == "FAILURE"]

    (run,) = until(ended, system)
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert tags["m3po/interrupted"] == "true"

    def again() -> list[dict]:
        found = runs(system, statuses=["SUCCESS"])
        return [other for other in found if other["assetSelection"] == cut["assetSelection"]]

    (done,) = until(again, system)
    assert not any(tag["key"] == "dagster/retry_number" for tag in done["tags"]), "the sensor's run, not a second one"


def _caught_at_work(system: System, code: Service) -> list[dict]:
    """A run at work, with its container held still so that it stays so; nothing where it ended before."""
    if not runs(system, statuses=["STARTED"]):
        return []
    code.pause()
    found = runs(system, statuses=["STARTED"])
    if not found:
        code.resume()
    return found[:1]
