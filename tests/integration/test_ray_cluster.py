"""The graph on a real Ray cluster: shards spread over nodes, a node lost in the middle, models loaded once a group."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml

from m3po_dagster import run_tags
from m3po_dagster.graph import STAGES, all_parts
from tests.integration.conftest import Project
from tests.integration.daemon import M3PO, objects
from tests.integration.ray_cluster import ray_cluster
from tests.integration.test_crash import assert_same_tables

ROOT = str(Path(__file__).parents[2])
SHARDS, GROUPS = 4, 2
SLOT = {"count": 0, "resources": {"slot": 1}}


def study_of(small_study: dict) -> dict:
    """Four shards, slow enough that a node can be killed in the middle of one; one recipe that trains."""
    study = deepcopy(small_study)
    study["dataset"]["shards"] = SHARDS
    study["generation"] |= {"n": 32, "prompts_per_batch": 1}
    del study["recipes"]["sft"]
    return study


@pytest.fixture
def deployed(tmp_path, small_study) -> tuple[Project, dict[str, str]]:
    """A project, and the environment of a code location whose deployment is a Ray cluster."""
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.write(study_of(small_study))
    deployment = {"executor": "ray", "groups": GROUPS, "steps": {"default": SLOT}}
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(deployment))
    environment = {
        **project.environment(),
        "M3PO_DEPLOYMENT": str(tmp_path / "deployment.yaml"),
        "PYTHONPATH": ROOT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return project, environment


def half_sampled(project: Project) -> tuple[Path, int] | None:
    """The draft of a shard of which some prompts are on disk, and the process that writes it."""
    for lock in (project.folder / "store" / "candidates").glob("*/*/lock"):
        text = lock.read_text()
        if text and len(list(lock.parent.glob("parts/*.parquet"))) >= 2:
            return lock.parent, json.loads(text)["pid"]
    return None


def prompts_in_parts(draft: Path) -> set[str]:
    """The prompts that are whole on disk."""
    parts = draft.glob("parts/*.parquet")
    return {key for part in parts for key in pq.read_table(part, columns=["prompt_id"])["prompt_id"].to_pylist()}


def logged(project: Project, run_id: str, words: str) -> list[tuple[str, str]]:
    """(step, message) of the lines in a run's log that hold these words."""
    with project.instance() as instance:
        return [
            (entry.step_key, entry.user_message) for entry in instance.all_logs(run_id) if words in entry.user_message
        ]


@pytest.mark.slow
def test_a_study_on_a_cluster_that_loses_a_node(deployed, tmp_path, small_study):
    project, environment = deployed
    with ray_cluster(2, environment) as cluster:
        environment["RAY_ADDRESS"] = cluster.address
        project.instance().dispose()
        run = subprocess.Popen(
            cluster.inside([M3PO, "run"]), env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            while (found := half_sampled(project)) is None:
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.01)
            draft, pid = found
            lost = cluster.node_of(pid)
            cluster.kill_node(lost)
            kept = prompts_in_parts(draft)
            said = run.communicate(timeout=480)[1]
        finally:
            run.kill()
        jobs = cluster.jobs()
    assert run.returncode == 0, said

    # Retried elsewhere, nothing lost: all is fresh, and each result was committed once.
    assert project.unsettled() == []
    parts = Counter(asset for asset, _ in all_parts(project.load()))
    for asset in STAGES:
        assert objects(project, asset) == dict.fromkeys(objects(project, asset), 1), asset
        assert len(objects(project, asset)) == parts[asset], asset

    # Spread over the nodes: both began to sample, and what the lost one had begun ended on the other.
    sampling = [job for job in jobs if ".sample[" in job["step"]]
    assert len(sampling) == GROUPS + 1 and len({job["node"] for job in sampling[:GROUPS]}) == 2
    assert Counter(job["status"] for job in jobs if job["status"] != "SUCCEEDED") == {"FAILED": 1}
    (failed,) = [job for job in sampling if job["status"] == "FAILED"]
    (again,) = [job for job in sampling if job["step"] == failed["step"] and job is not failed]
    assert again["node"] != failed["node"]

    # Nothing sampled twice but the part under way: the second attempt asked for the prompts without a whole part.
    sampled = {item.key.partition: item for item in project.store.list("candidates")}
    interrupted = draft.parent.name
    for shard, artifact in sampled.items():
        prompts = set(artifact.table()["prompt_id"].to_pylist())
        before = kept if shard == interrupted else set()
        assert artifact.manifest.metadata["this run"]["prompts"] == len(prompts - before), shard
    assert kept and kept < set(sampled[interrupted].table()["prompt_id"].to_pylist())

    # Warm: one load of the base model for all shards of a group.
    with project.instance() as instance:
        (whole,) = [run for run in instance.get_runs() if run_tags.STARTED_BY not in run.tags]
        children = instance.get_runs(dg.RunsFilter(tags={run_tags.STARTED_BY: whole.run_id}))
    loads = [(step, said) for step, said in logged(project, whole.run_id, "base model loaded") if ".sample[" in step]
    assert len(loads) == GROUPS and all("base model loaded 1 time" in said for _, said in loads)
    assert Counter(run.status for run in children) == {
        dg.DagsterRunStatus.SUCCESS: len(children) - 1,
        dg.DagsterRunStatus.FAILURE: 1,
    }, "the run on the lost node is put down as such"

    # As on one machine.
    here = Project(tmp_path / "here")
    here.folder.mkdir()
    here.write(study_of(small_study))
    assert [outcome.error for outcome in here.run() if outcome.error] == []
    assert_same_tables(project, here)
