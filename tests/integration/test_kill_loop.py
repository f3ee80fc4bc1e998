"""A whole study under dozens of SIGKILLs: in the end every table is, byte for byte, an undisturbed run's."""

import json
import subprocess
import sys
from collections import Counter
from copy import deepcopy

import pytest
import runs_under_kill

from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES
from m3po_dagster.storage.names import encode_partition
from tests.integration.conftest import Project

LEAST_KILLS = 50
HIT = {
    "source_dataset", "benchmark_data", "filtered_instructions", "candidates", "mas_table", "preference_pairs",
    "lora_adapter", "adapter", "benchmark_answers", "benchmark_scores", "leaderboard",
}  # fmt: skip
"""What must have been met at work; the rest is made in less time than it takes to be seen."""


def run(project: Project, *command: str) -> str:
    """Runs a command on a project with one thread, so that sums are added up in one order everywhere."""
    environment = {**project.environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=2600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def results_of(project: Project) -> dict:
    """Fingerprint and content of every part that is current.

    Of the leaderboard, of its scores: its pages tell how long everything took.
    """
    with project.instance() as instance:
        heads = read_heads(instance)
    found = {part: (head.fingerprint, head.data_version) for part, head in heads.items()}
    for part, (fingerprint, _) in found.items():
        if part[0] == "leaderboard":
            found[part] = (fingerprint, project.store.find(*part, fingerprint).manifest.tables["data"].hash)
    return found


def contents_of(project: Project) -> dict:
    """The content of every object in the store, of what is no part too: adapters, answers."""
    return {one.key: one.data_version for one in project.store.list() if one.key.asset != "leaderboard"}


def materialisations(project: Project) -> Counter:
    """How often each part was made, not found made, by Dagster's event log."""
    import dagster as dg

    made: Counter = Counter()
    with project.instance() as instance:
        for asset in STAGES:
            for record in instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records:
                found = record.asset_materialization
                made[asset, found.partition or ""] += not found.metadata["reused"].value
    return made


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_kills_change_nothing(tmp_path, small_study):
    settings = deepcopy(small_study)
    # In a batch of several, rounding depends on who else is in it: parts hold whole batches, which this shows.
    settings["generation"]["prompts_per_batch"] = 3
    settings["trainer"] = {"kind": "local", "checkpoint_minutes": 0}
    projects = [Project(tmp_path / name) for name in ("undisturbed", "killed")]
    for project in projects:
        project.folder.mkdir()
        project.write(settings)
        project.instance().dispose()
    undisturbed, killed = projects
    run(undisturbed, "-c", runs_under_kill.COMMAND, "run")
    made = sorted(undisturbed.store.list(), key=lambda one: one.manifest.created)
    parts = [[one.key.asset, encode_partition(one.key.partition), one.manifest.seconds] for one in made]
    told = json.loads(run(killed, runs_under_kill.__file__, json.dumps(parts), "9").splitlines()[-1])

    met = Counter(name.split("[")[0] for kill in told["kills"] for name in kill["held"])
    print(f"{len(told['kills'])} kills, {sum(kill['shell'] for kill in told['kills'])} with the start before them; "
          f"{sum(not kill['held'] for kill in told['kills'])} between two steps; at work on {dict(met)}")  # fmt: skip
    assert len(told["kills"]) >= LEAST_KILLS
    assert set(met) >= HIT
    assert results_of(killed) == results_of(undisturbed)
    assert {item.state for item in killed.standings()} == {"fresh"}
    assert contents_of(killed) == contents_of(undisturbed)
    assert told["rewritten"] == [] and told["committed"] == len(list(undisturbed.store.list()))
    assert max(materialisations(killed).values()) == 1, "nothing is made twice"
    assert killed.store.quarantined() == [] and list(killed.store.drafts()) == []
    assert killed.store.survey(content=True).damaged == {}
