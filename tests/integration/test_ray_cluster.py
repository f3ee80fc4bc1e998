"""The graph on a real Ray cluster: shards spread over nodes, a node lost in the middle, models loaded once a group."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml

from m3po_dagster import run_tags
from m3po_dagster.automation.active_runs import at_work
from m3po_dagster.graph import STAGES, all_parts
from tests.integration.conftest import Project
from tests.integration.daemon import M3PO, objects
from tests.integration.ray_cluster import RayCluster, ray_cluster
from tests.integration.test_crash import assert_same_tables

ROOT = str(Path(__file__).parents[2])
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SHARDS, GROUPS = 4, 2
SLOT = {"count": 0, "resources": {"slot": 1}}


def study_of(small_study: dict) -> dict:
    """Four shards, slow enough that a node can be killed in the middle of one; one recipe that trains."""
    study = deepcopy(small_study)
    study["dataset"]["shards"] = SHARDS
    study["generation"] |= {"n": 32, "prompts_per_batch": 1}
    del study["recipes"]["sft"]
    return study


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


def materialised_alone(cluster: RayCluster, environment: dict, asset: str, partition: str) -> list[dict]:
    """The cluster's jobs after one part was materialised as Dagster's own command does it."""
    command = [str(Path(sys.executable).with_name("dagster")), "asset", "materialize", "-m", "m3po_dagster.definitions"]
    command += ["--select", asset, "--partition", partition]
    done = subprocess.run(cluster.inside(command), env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cluster.jobs()


def deployed(folder: Path, study: dict) -> tuple[Project, dict[str, str]]:
    """A project, and the environment of a code location whose deployment is a Ray cluster."""
    (folder / "project").mkdir()
    project = Project(folder / "project")
    project.write(study)
    deployment = {"executor": "ray", "groups": GROUPS, "steps": {"default": SLOT}}
    (folder / "deployment.yaml").write_text(yaml.safe_dump(deployment))
    return project, {
        **project.environment(),
        "M3PO_DEPLOYMENT": str(folder / "deployment.yaml"),
        "PYTHONPATH": ROOT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


@dataclass
class LostNode:
    """What is left of a study that a cluster ran while a node was lost."""

    project: Project
    jobs: list[dict]
    single: dict
    draft: Path
    kept: set[str]

    @property
    def sampling(self) -> list[dict]:
        """The jobs that sampled, oldest first."""
        return [job for job in self.jobs if ".sample[" in job["step"]]

    @property
    def whole(self) -> dg.DagsterRun:
        """The run that `m3po run` orchestrated."""
        with self.project.instance() as instance:
            (run,) = instance.get_runs(dg.RunsFilter(job_name="everything"))
        return run


@pytest.fixture(scope="module")
def lost_node(tmp_path_factory, small_study) -> LostNode:
    """`m3po run` on a cluster of two nodes, one of which is killed with a shard half sampled; then one asset alone."""
    project, environment = deployed(tmp_path_factory.mktemp("cluster"), study_of(small_study))
    with ray_cluster(2, environment) as cluster:
        environment["RAY_ADDRESS"] = cluster.address
        command = cluster.inside([M3PO, "run"])
        run = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            while (found := half_sampled(project)) is None:
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.01)
            draft, pid = found
            cluster.kill_node(cluster.node_of(pid))
            kept = prompts_in_parts(draft)
            said = run.communicate(timeout=1500)[1]
        finally:
            run.kill()
        assert run.returncode == 0, said
        *jobs, single = materialised_alone(cluster, environment, "candidates", "s0")
    return LostNode(project, jobs, single, draft, kept)


def test_everything_is_made_and_each_result_is_committed_once(lost_node):
    project = lost_node.project
    assert project.unsettled() == []
    parts = Counter(asset for asset, _ in all_parts(project.load()))
    for asset in STAGES:
        found = objects(project, asset)
        assert set(found.values()) == {1} and len(found) == parts[asset], asset


def test_groups_spread_over_the_nodes_and_the_lost_one_went_elsewhere(lost_node):
    sampling = lost_node.sampling
    assert len({job["node"] for job in sampling[:GROUPS]}) == 2
    (failed,) = [job for job in sampling[:GROUPS] if job["status"] != "SUCCEEDED"]
    (again,) = [job for job in sampling if job["step"] == failed["step"] and job["status"] == "SUCCEEDED"]
    assert again["node"] != failed["node"]


def test_every_step_succeeds_once_and_one_given_to_the_lost_node_is_tried_again(lost_node):
    # Until the cluster notices the loss, it may give that node further jobs.
    lost = [job for job in lost_node.jobs if job["status"] != "SUCCEEDED"]
    succeeded = Counter(job["step"] for job in lost_node.jobs if job["status"] == "SUCCEEDED")
    assert {job["status"] for job in lost} == {"FAILED"} and {job["step"] for job in lost} <= set(succeeded)
    assert set(succeeded.values()) == {1} and sum(".sample[" in step for step in succeeded) == GROUPS


def test_nothing_was_sampled_twice_but_the_part_under_way(lost_node):
    sampled = {item.key.partition: item for item in lost_node.project.store.list("candidates")}
    interrupted = lost_node.draft.parent.name
    for shard, artifact in sampled.items():
        tokens = Counter()
        for row in artifact.table(columns=["prompt_id", "n_tokens", "multiplicity"]).to_pylist():
            tokens[row["prompt_id"]] += row["n_tokens"] * row["multiplicity"]
        before = lost_node.kept if shard == interrupted else set()
        asked = {prompt: number for prompt, number in tokens.items() if prompt not in before}
        assert before < set(tokens)
        did = artifact.manifest.metadata["this run"]
        assert (did["prompts"], did["tokens"]) == (len(asked), sum(asked.values())), shard
    assert lost_node.kept


def test_a_model_is_loaded_once_for_the_shards_of_a_group(lost_node):
    loads = logged(lost_node.project, lost_node.whole.run_id, "base model loaded")
    sampling = [said for step, said in loads if ".sample[" in step]
    assert len(sampling) == GROUPS < SHARDS
    assert all(said.startswith("base model loaded 1 time ") for said in sampling), sampling


def test_the_run_on_the_lost_node_is_put_down_as_cut_off(lost_node):
    with lost_node.project.instance() as instance:
        children = instance.get_runs(dg.RunsFilter(tags={run_tags.STARTED_BY: lost_node.whole.run_id}))
    (lost,) = [run for run in children if not run.is_success]
    assert run_tags.INTERRUPTED in lost.tags and lost.tags["m3po/shard"] == lost_node.draft.parent.name


def test_a_part_that_dagster_starts_alone_is_a_job_on_a_node_too(lost_node):
    single = lost_node.single
    assert (single["step"], single["status"]) == ("candidates", "SUCCEEDED")
    # The slot that it asks for is on the nodes only.
    assert single["node"] in {job["node"] for job in lost_node.sampling}
    assert lost_node.project.events()["candidates", "s0"] == 2


def test_the_tables_are_those_of_one_machine(lost_node, tmp_path, small_study):
    here = Project(tmp_path)
    here.write(study_of(small_study))
    assert [outcome.error for outcome in here.run() if outcome.error] == []
    assert_same_tables(lost_node.project, here)


def test_an_interrupt_ends_the_jobs_on_the_cluster_too(tmp_path, small_study):
    project, environment = deployed(tmp_path, study_of(small_study))
    with ray_cluster(1, environment) as cluster:
        environment["RAY_ADDRESS"] = cluster.address
        command = cluster.inside([M3PO, "run"])
        run = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            while half_sampled(project) is None:
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.01)
            run.send_signal(signal.SIGINT)
            said = run.communicate(timeout=300)[1]
        finally:
            run.kill()
        jobs = cluster.ended_jobs()
    assert run.returncode == 130 and "finished work is kept" in said
    assert {job["status"] for job in jobs if ".sample[" in job["step"]} <= {"STOPPED", "FAILED"}, jobs
    with project.instance() as instance:
        # A step that has no time to say how its run ended leaves it to whoever looks next.
        assert at_work(instance) == {} and all(run.is_finished for run in instance.get_runs())
