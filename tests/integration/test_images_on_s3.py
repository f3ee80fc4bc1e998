"""The whole graph over dataset, images and benchmarks in a bucket of a real service; its compute logs go to another."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from m3po_dagster.current import read_heads
from tests.s3_files.uploads import requests, uploaded
from tests.s3_server import s3_server

LOGS = "logs"
PAGE = Path(__file__).parents[2] / "docs" / "images-on-s3.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.bucket("data")
        running.bucket(LOGS)
        yield running


def fewer(study: dict) -> dict:
    """The study with one recipe beside the base model."""
    return study | {"recipes": {name: study["recipes"][name] for name in ("base", "m3po")}}


@pytest.fixture
def remote(server, fresh, small_study, world, monkeypatch):
    """The small study with s3:// in place of the world's folder, and nothing else changed."""
    root = uploaded(server, world, "easy_scenes")
    fresh.write(json.loads(json.dumps(fewer(small_study)).replace(str(world), str(root))))
    monkeypatch.setenv("M3PO_CACHE", str(fresh.folder / "cache"))
    (documented,) = re.findall(r"```yaml\n(compute_logs:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    compute_logs = yaml.safe_load(documented)["compute_logs"]
    compute_logs["config"] |= {"bucket": LOGS, "local_dir": str(fresh.folder / "captured")}
    (fresh.folder / "home").mkdir()
    (fresh.folder / "home" / "dagster.yaml").write_text(
        yaml.safe_dump({"telemetry": {"enabled": False}, "compute_logs": compute_logs})
    )
    return fresh


def versions(project) -> dict:
    with project.instance() as instance:
        return {part: head.data_version for part, head in read_heads(instance).items()}


def run(projects) -> None:
    """`m3po run` in each, as a process of its own: what an earlier run left in memory could change the last digit."""
    command = [sys.executable, "-c", "from m3po_dagster.cli.main import main; main()", "run"]
    running = [
        subprocess.Popen(command, env=one.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for one in projects
    ]
    for process in running:
        said, _ = process.communicate(timeout=1800)
        assert process.returncode == 0, said[-3000:]


@pytest.mark.slow
def test_everything_is_made_as_from_a_folder_and_the_logs_are_in_the_bucket(
    remote, small_study, server, tmp_path_factory, monkeypatch
):
    here = type(remote)(tmp_path_factory.mktemp("here"))
    here.write(fewer(small_study))
    run([here, remote])
    assert versions(remote) == versions(here)
    copies = [path for path in (remote.folder / "cache" / "objects").rglob("*") if path.suffix in (".png", ".json")]
    images = remote.load().dataset.sources["scenes"].image_root
    assert 20 < len(copies) <= sum(1 for _ in images.parent.parent.files())

    # As another machine, without any copy: every image is known by its ETag, none is fetched.
    monkeypatch.setenv("M3PO_CACHE", str(remote.folder / "empty"))
    with requests() as asked:
        assert remote.run() == []
    assert not list((remote.folder / "empty").rglob("*.png")) and asked["ListObjectsV2"] <= 10, asked

    keys = [found["Key"] for found in server.client().list_objects_v2(Bucket=LOGS)["Contents"]]
    with remote.instance() as instance:
        logs = instance.compute_log_manager
        assert isinstance(logs, S3ComputeLogManager)
        runs = instance.get_runs()
        for found in runs:
            ends = {key.rpartition(".")[2] for key in keys if f"/{found.run_id}/" in key}
            assert ends == {"out", "err"}, found.tags
        sampled = next(one for one in runs if "candidates" in {key.to_user_string() for key in one.asset_selection})
        events = [entry.dagster_event for entry in instance.all_logs(sampled.run_id) if entry.dagster_event]
        captured = next(event.logs_captured_data for event in events if event.event_type_value == "LOGS_CAPTURED")
        key = [sampled.run_id, "compute_logs", captured.file_key]
        assert f"m3po/storage/{'/'.join(key)}.err" in keys
        # Read back as the web interface does, once this machine's own are gone.
        logs.local_manager.delete_logs(prefix=[sampled.run_id])
        said, _ = logs.get_log_data_for_type(key, ComputeIOType.STDERR, offset=0, max_bytes=None)
        assert b"made in" in said
