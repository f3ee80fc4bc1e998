"""The whole graph over dataset, images and benchmarks in a bucket of a real service; its compute logs go to another."""

import json
import re
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from m3po_dagster.current import read_heads
from tests.integration.test_crash import assert_same_tables
from tests.s3_files.uploads import requests, uploaded
from tests.s3_server import s3_server

LOGS = "logs"
READ = ("source_dataset", "filtered_instructions", "benchmark_data", "recipe_config", "judge_identity")
PAGE = Path(__file__).parents[2] / "docs" / "images-on-s3.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.bucket("data")
        running.bucket(LOGS)
        yield running


@pytest.fixture
def logged(server, fresh):
    """A project whose dagster.yaml has the page's section, with this bucket in it."""
    (documented,) = re.findall(r"```yaml\n(compute_logs:.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    compute_logs = yaml.safe_load(documented)["compute_logs"]
    compute_logs["config"] |= {"bucket": LOGS, "local_dir": str(fresh.folder / "captured")}
    (fresh.folder / "home").mkdir()
    (fresh.folder / "home" / "dagster.yaml").write_text(
        yaml.safe_dump({"telemetry": {"enabled": False}, "compute_logs": compute_logs})
    )
    return fresh


@pytest.fixture
def remote(server, logged, small_study, world, monkeypatch):
    """The small study with s3:// in place of the world's folder, and nothing else changed."""
    root = uploaded(server, world, "easy_scenes")
    logged.write(json.loads(json.dumps(small_study).replace(str(world), str(root))))
    monkeypatch.setenv("M3PO_CACHE", str(logged.folder / "cache"))
    return logged


def versions(project) -> dict:
    with project.instance() as instance:
        return {part: head.data_version for part, head in read_heads(instance).items()}


@pytest.mark.slow
def test_everything_is_made_as_from_a_folder_and_the_logs_are_in_the_bucket(made, remote, server, monkeypatch):
    with requests() as asked:
        assert [outcome.error for outcome in remote.run() if outcome.error] == []
    assert_same_tables(remote, made)
    ours, theirs = versions(remote), versions(made)
    for part in ours:  # what no arithmetic enters is the same to the byte
        assert part[0] not in READ or ours[part] == theirs[part], part
    images = remote.load().dataset.sources["scenes"].image_root
    assert 20 < asked["GetObject"] <= sum(1 for _ in images.parent.parent.files()), "nothing is fetched twice"

    # As another machine, without any copy: every image is known by its ETag, none is fetched.
    monkeypatch.setenv("M3PO_CACHE", str(remote.folder / "empty"))
    with requests() as asked:
        assert remote.run() == []
    assert not list((remote.folder / "empty").rglob("*.png")) and asked["ListObjectsV2"] <= 10, asked

    keys = [found["Key"] for found in server.client().list_objects_v2(Bucket=LOGS)["Contents"]]
    with remote.instance() as instance:
        runs = instance.get_runs()
    assert len(runs) > 10
    for found in runs:
        assert {key.rpartition(".")[2] for key in keys if f"/{found.run_id}/" in key} == {"out", "err"}, found.tags


@dg.op
def speak(context):
    print("to be found on stdout")
    print("to be found on stderr", file=sys.stderr)


@pytest.mark.slow
def test_what_a_step_prints_is_read_from_the_bucket(logged, server):
    with logged.instance() as instance:
        logs = instance.compute_log_manager
        assert isinstance(logs, S3ComputeLogManager)
        made = dg.GraphDefinition("speaking", node_defs=[speak]).to_job().execute_in_process(instance=instance)
        captured = next(
            event.logs_captured_data for event in made.all_events if event.event_type_value == "LOGS_CAPTURED"
        )
        key = [made.run_id, "compute_logs", captured.file_key]
        logs.local_manager.delete_logs(prefix=[made.run_id])  # as on another machine
        for kind, ending in ((ComputeIOType.STDOUT, "out"), (ComputeIOType.STDERR, "err")):
            there = server.client().get_object(Bucket=LOGS, Key=f"m3po/storage/{'/'.join(key)}.{ending}")["Body"].read()
            assert f"to be found on std{ending}".encode() in there
            read, _ = logs.get_log_data_for_type(key, kind, offset=0, max_bytes=None)
            assert read == there
