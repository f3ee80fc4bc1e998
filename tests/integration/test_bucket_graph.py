"""The whole small graph with its store in a bucket of a real S3 service: equal to a local run, command by command."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import Project
from typer.testing import CliRunner

from m3po_dagster.cli.main import app
from m3po_dagster.current import held_heads, read_heads
from m3po_dagster.storage.store import ArtifactStore
from tests.s3_requests import counted
from tests.s3_server import s3_server

pytestmark = pytest.mark.slow


@dataclass
class BucketProject(Project):
    """A project whose store is in a bucket."""

    url: str

    @property
    def root(self) -> str:
        return self.url


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        server.bucket("m3po")
        patch.setenv("M3PO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield server


@pytest.fixture(scope="module")
def both(service, small_study, tmp_path_factory) -> tuple[Project, BucketProject]:
    """The small study run by `m3po run` in a folder and in a bucket: M3PO_STORE alone differs.

    Each in a process of its own with one thread: the last bits of a log-prob depend on what a process did before.
    """
    projects = (
        Project(tmp_path_factory.mktemp("local")),
        BucketProject(tmp_path_factory.mktemp("bucket"), "s3://m3po/small"),
    )
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", "run"]
    running = []
    for project in projects:
        project.write(small_study)
        environment = {**project.environment(), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in running:
        output, _ = process.communicate()
        assert process.returncode == 0, output.decode()[-2000:]
    return projects


@pytest.fixture(scope="module")
def local(both) -> Project:
    """The study in a folder."""
    return both[0]


@pytest.fixture(scope="module")
def in_bucket(both) -> BucketProject:
    """The study in a bucket."""
    return both[1]


def heads_of(project: Project) -> dict:
    with project.instance() as instance:
        return read_heads(instance)


def call(project: Project, *arguments: object) -> str:
    """What an `m3po` command prints."""
    env = {name: project.environment()[name] for name in ("DAGSTER_HOME", "M3PO_STORE", "M3PO_STUDY")}
    done = CliRunner().invoke(app, list(map(str, arguments)), env=env)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_part_is_what_a_local_run_made(in_bucket, local):
    there, here = heads_of(in_bucket), heads_of(local)
    # The leaderboard's page says how long things took, which is part of its version: its table is compared.
    boards = [heads.pop(("leaderboard", "")).fingerprint for heads in (there, here)]
    assert there == here and boards[0] == boards[1]
    tables = [project.store.find("leaderboard", "", boards[0]).table() for project in (in_bucket, local)]
    assert tables[0].equals(tables[1])
    assert {a.key for a in in_bucket.store.list()} == {a.key for a in local.store.list()}
    assert in_bucket.unsettled() == [] and in_bucket.run() == []
    assert not (in_bucket.folder / "store").exists()


def test_commands_read_the_bucket(in_bucket, local, tmp_path):
    def listed(project: Project) -> list[tuple]:
        rows = json.loads(call(project, "store", "ls", "--json"))
        return [(row["asset"], row["partition"], row["fingerprint"], row["rows"]) for row in rows]

    assert sorted(listed(in_bucket)) == sorted(listed(local))
    adapter = heads_of(in_bucket)["lora_adapter", "m3po"].fingerprint
    assert f"{in_bucket.root}/lora_adapter/m3po/{adapter}" in call(in_bucket, "store", "show", adapter[:12])
    assert "Nothing to remove" in call(in_bucket, "store", "gc", "--older-than", "0")
    trees = [json.loads(call(project, "lineage", "adapter", "m3po", "--json")) for project in (in_bucket, local)]
    there, here = ([(a["asset"], a["partition"], a["fingerprint"]) for a in tree["artifacts"]] for tree in trees)
    assert there == here
    for project, out in ((in_bucket, tmp_path / "bucket"), (local, tmp_path / "local")):
        call(project, "export", "m3po", "--format", "trl", "--out", out / "pairs")
        call(project, "export", "m3po", "--adapter", "--out", out / "adapter")
        call(project, "leaderboard", "--out", out / "board")
    for name in ("pairs/README.md", "adapter/adapter_model.safetensors", "board/leaderboard.parquet"):
        assert (tmp_path / "bucket" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name


def test_what_is_due_is_seen_in_a_few_requests(in_bucket):
    with in_bucket.instance() as instance:
        parts = len(read_heads(instance))
    store = in_bucket.store
    with in_bucket.instance() as instance:
        held_heads(instance, store)
        with counted(store) as requests:
            assert len(held_heads(instance, store)) == parts
        with counted(store) as often:
            assert len(held_heads(instance, store, often=True)) == parts
    assets = {part[0] for part in heads_of(in_bucket)}
    # What stands on adapters is looked at each time, with its adapters; of the rest a listing an asset.
    assert requests - often == {"ListObjectsV2": requests["ListObjectsV2"]} and set(often) == {"GetObject"}
    assert 0 < requests["ListObjectsV2"] <= len(assets) and requests.total() < parts


def test_a_training_killed_on_one_machine_goes_on_on_another(in_bucket, local, service, tmp_path):
    settings = yaml.safe_load(local.study_file.read_text())
    settings["trainer"] = {"kind": "local", "checkpoint_minutes": 0}
    settings["recipes"]["m3po"]["training"] |= {"epochs": 4, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(settings))
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(local.root, undisturbed, ignore=shutil.ignore_patterns("adapter"))
    script = Path(__file__).with_name("bucket_training_under_kill.py")
    roots = [str(undisturbed), in_bucket.root]
    command = [sys.executable, str(script), str(study), *roots, str(local.folder / "home"), "m3po", "11"]
    output = subprocess.run(command, env=in_bucket.environment(), capture_output=True, text=True, timeout=500)
    assert output.returncode == 0, output.stderr[-2000:]
    told = json.loads(output.stdout.splitlines()[-1])
    assert told["codes"].count(-signal.SIGKILL) >= 1 and told["codes"][-1] == 0
    (whole,) = ArtifactStore(undisturbed).list("adapter")
    other = in_bucket.store.find(*whole.key)
    assert other.manifest.files == whole.manifest.files, "the adapter's bytes"
    assert other.manifest.metadata["resumed from step"], (
        "no attempt sees the folder of another: this came by the bucket"
    )
    for table in ("training_log", "margins", "trajectory"):
        assert other.table(table).equals(whole.table(table)), table
    assert not [name for name in in_bucket.store._disk.files(whole.key.folder) if "scratch" in name]
