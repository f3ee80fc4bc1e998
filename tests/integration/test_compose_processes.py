"""The images' commands in environments made as the Dockerfiles say, and the compose file's services over them, for real.

Only an engine is missing: kernel namespaces stand in for containers, this machine's Python for the base image, this
machine's Postgres for its image.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docker import compose_file, dockerfile
from tests.docker.processes import Database, Network, Service
from tests.integration.conftest import WEIGHTS

pytestmark = pytest.mark.slow
DOCKER = compose_file.DOCKER
INSIDE = "/srv/m3po"
NAMES = ("postgres", "s3", "bucket", "code", "webserver", "daemon")


def _can_isolate() -> bool:
    return (
        os.geteuid() == 0 and not subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"]).returncode
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, tuple[dockerfile.Stage, Path]]:
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
    return {name: (stage, made[name]) for name, stage in found.items()}


@pytest.fixture(scope="module")
def study(small_study, world, tmp_path_factory) -> Path:
    """A folder with a study whose paths are those of a container; its files are the data volume's."""
    folder = tmp_path_factory.mktemp("studies")
    text = (
        json.dumps(small_study)
        .replace(str(world), f"{INSIDE}/data")
        .replace(str(WEIGHTS), f"{INSIDE}/m3po_dagster/world/weights")
    )
    told = json.loads(text) | {
        "automation": {"running": True, "look_every": 5, "retry_after": 1, "training": "by_hand"}
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(told))
    for place in (folder, world, *folder.rglob("*"), *world.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    return folder


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
        words = [
            "curl",
            "-sS",
            "-m",
            "60",
            "-H",
            "Content-Type: application/json",
            "-d",
            "@-",
            "http://webserver:3000/graphql",
        ]
        hosts = ["--resolve", "webserver:3000:127.0.0.1"]
        done = subprocess.run([*self.network.enter, *words, *hosts], input=body, capture_output=True, text=True)
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


def test_smoke(system):
    print(system.ask("{ version }"))
    print(system.services["code"].run(["with-secrets", "m3po", "status"]))
