"""The sensors under Dagster's real daemon: whatever is edited, killed or started by hand, the graph ends fresh.

The judge is a served one on loopback, so that scoring costs requests that can be counted.
"""

import os
import shutil
import signal
import subprocess
from collections import Counter
from copy import deepcopy

import dagster as dg
import pytest
from dagster import DagsterRunStatus

from m3po_dagster import run_tags
from m3po_dagster.current import read_heads
from m3po_dagster.home import SETTINGS
from tests.integration.conftest import Project
from tests.integration.daemon import M3PO, Daemon, counts_since, objects, what
from tests.integration.postgres import postgres
from tests.served_judge import ServedJudge


@pytest.fixture(scope="module")
def judge():
    with ServedJudge() as served:
        yield served


@pytest.fixture(scope="module")
def automated_study(small_study, judge) -> dict:
    """The small study with a served judge, one benchmark, and sensors that run from the start."""
    study = deepcopy(small_study)
    study["judge"] = {
        "scorers": [{"kind": "llm_judge", "name": "llm", "base_url": judge.base_url, "model": "loopback-judge"}]
    }
    study["judge"]["probe_repeats"] = 1
    study["generation"] |= {"n": 4, "part_seconds": 1}
    del study["benchmarks"]["pope"]
    study["automation"] = {"running": True, "look_every": 5, "retry_after": 1}
    return study


@pytest.fixture(scope="module")
def settled(tmp_path_factory, automated_study):
    """A project of that study, run once."""
    project = Project(tmp_path_factory.mktemp("settled"))
    project.write(automated_study)
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    return project


@pytest.fixture
def project(settled, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(settled.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def edited(study: dict, **changes: object) -> dict:
    """The study with some of its settings changed."""
    changed = deepcopy(study)
    scorer, m3po = changed["judge"]["scorers"][0], changed["recipes"]["m3po"]
    for name, value in changes.items():
        match name:
            case "tokens":  # another judge whose verdicts are the same
                scorer["max_reply_tokens"] = value
            case "high":  # another judge on another scale: other scores
                scorer["calibration"] = {"kind": "linear", "low": 0.0, "high": value}
            case "alpha":
                m3po["selection"]["alpha"] = value
            case "epochs":
                m3po["training"]["epochs"] = value
            case "rank":
                changed["recipes"]["sft"]["training"]["lora"] = {"r": value, "alpha": 8}
            case _:
                scorer[name] = value
    return changed


def trainings(project) -> int:
    """Trainings that went through to their last step, by the runs' logs."""
    number = 0
    with project.instance() as instance:
        for run in instance.get_runs():
            for record in instance.all_logs(run.run_id):
                words = record.user_message.split(" training seed ")
                done = words[1].split(": ")[-1].split(" steps")[0].split(" of ") if len(words) == 2 else ("", "-")
                number += done[0] == done[-1]
    return number


def assert_right(project, before: dict) -> None:
    """Fresh by our own reckoning and by Dagster's; what no edit of these tests can touch is as it was."""
    assert project.unsettled() == []
    assert {str(status.value) for status in project.dagster_staleness().values()} == {"FRESH"}
    with project.instance() as instance:
        now = read_heads(instance)
    for part, head in before.items():
        if part[0] in ("candidates", "logprob_table", "filtered_instructions"):
            assert now[part] == head


def heads_of(project) -> dict:
    with project.instance() as instance:
        return read_heads(instance)


@pytest.mark.slow
def test_a_judge_edited_while_the_first_edit_is_being_scored(project, automated_study):
    before, events, adapters = heads_of(project), Counter(project.events()), objects(project, "adapter")
    with Daemon(project) as daemon:
        project.write(edited(automated_study, tokens=400))
        daemon.until(lambda: any(asset == "mas_table" for asset, _ in daemon.active()))
        project.write(edited(automated_study, tokens=300))
        daemon.until_settled()
        assert_right(project, before)
    since = counts_since(project, events)
    assert since["candidates"] == since["logprob_table"] == since["filtered_instructions"] == 0
    # The verdicts don't depend on the length of a reply: same scores, so nothing is selected or trained again.
    assert since["preference_pairs"] == 0 and objects(project, "adapter") == adapters


@pytest.mark.slow
def test_a_judge_edited_twice_quickly_and_a_recipe_meanwhile(project, automated_study):
    before, done = heads_of(project), trainings(project)
    adapters = sum(objects(project, "adapter").values())
    with Daemon(project) as daemon:
        project.write(edited(automated_study, high=2.0))
        project.write(edited(automated_study, high=4.0))
        daemon.until(lambda: any(asset == "preference_pairs" for asset, _ in daemon.active()))
        project.write(edited(automated_study, high=4.0, alpha=0.2))
        daemon.until_settled()
        assert_right(project, before)
    assert trainings(project) - done == sum(objects(project, "adapter").values()) - adapters


@pytest.mark.slow
def test_two_recipes_edited_at_once_and_one_of_them_back(project, automated_study):
    before, events, done = heads_of(project), Counter(project.events()), trainings(project)
    with Daemon(project) as daemon:
        project.write(edited(automated_study, alpha=5.0, rank=2))
        daemon.until_settled()
        assert_right(project, before)
        since = counts_since(project, events)
        assert since["mas_table"] == 0 and since["recipe_config"] == 2
        assert project.events()["preference_pairs", "base|s0"] == 1
        assert objects(project, "adapter") == {"sft|0": 2, "m3po|0": 2}
        trained = trainings(project)
        project.write(edited(automated_study, rank=2))
        daemon.until_settled()
        assert_right(project, before)
    assert trained - done == 2 and trainings(project) == trained, "the old alpha's adapter is in the store"


@pytest.mark.slow
def test_everything_is_killed_in_the_middle_of_a_training(project, automated_study):
    before, done = heads_of(project), trainings(project)
    with Daemon(project) as daemon:
        project.write(edited(automated_study, alpha=5.0, rank=2))
        daemon.until(lambda: any(asset == "lora_adapter" for asset, _ in daemon.active()))
        daemon.until(lambda: any(run.status == DagsterRunStatus.STARTED for run in daemon.runs()))
        daemon.kill()
        assert daemon.active(), "nothing was at work when it was killed"
        daemon.start()
        daemon.until_settled()
        assert_right(project, before)
        # The daemon alone: its code server and the runs live on.
        project.write(edited(automated_study, alpha=6.0))
        daemon.until(lambda: any(asset == "preference_pairs" for asset, _ in daemon.active()))
        orphans = daemon.kill(everything=False)
        daemon.start()
        daemon.until_settled()
        for pid in orphans:
            if os.path.exists(f"/proc/{pid}"):
                os.kill(pid, signal.SIGKILL)
        assert_right(project, before)
    assert trainings(project) - done == sum(objects(project, "adapter").values()) - 2


@pytest.mark.slow
def test_a_training_that_became_obsolete_is_stopped(project, automated_study):
    before = heads_of(project)
    with Daemon(project) as daemon:
        project.write(edited(automated_study, epochs=2000))

        def training():
            return [run for run in daemon.runs(DagsterRunStatus.STARTED) if what(run) == ("lora_adapter", "m3po")]

        # One adapter's files are there from before; the second's folder is made when its training begins.
        daemon.until(lambda: training() and len(list((project.folder / "store/adapter").glob("m3po*/*/files"))) == 2)
        (long_one,) = training()
        project.write(edited(automated_study, alpha=5.0))
        daemon.until_settled()
        assert_right(project, before)
        (ended,) = (run for run in daemon.runs() if run.run_id == long_one.run_id)
    assert ended.status == DagsterRunStatus.CANCELED and run_tags.OBSOLETE in ended.tags
    assert objects(project, "adapter") == {"sft|0": 1, "m3po|0": 2}


@pytest.mark.slow
def test_a_judge_edited_while_a_training_holds_the_only_place_for_a_model(project, automated_study):
    before = heads_of(project)
    with Daemon(project) as daemon:
        project.write(edited(automated_study, epochs=2000))
        daemon.until(lambda: ("lora_adapter", "m3po") in [what(r) for r in daemon.runs(DagsterRunStatus.STARTED)])
        (long_one,) = (run for run in daemon.runs(DagsterRunStatus.STARTED) if what(run) == ("lora_adapter", "m3po"))
        project.write(edited(automated_study, epochs=2000, high=3.0))
        daemon.until(lambda: any(what(run)[0] == "mas_table" for run in daemon.runs(DagsterRunStatus.SUCCESS)))
        (ended,) = (run for run in daemon.runs() if run.run_id == long_one.run_id)
        project.write(edited(automated_study, high=3.0))
        daemon.until_settled()
        assert_right(project, before)
    assert ended.status == DagsterRunStatus.CANCELED and run_tags.OBSOLETE in ended.tags
    assert objects(project, "adapter")["m3po|0"] <= 2


@pytest.mark.slow
def test_three_failures_are_held_until_somebody_mends_it(project, automated_study, judge):
    before = heads_of(project)
    with Daemon(project) as daemon:
        # Other tokens are another question: another scale alone would be answered by the ledger.
        project.write(edited(automated_study, high=3.0, tokens=700, max_retries=0, timeout=5.0))
        daemon.until(lambda: not any(item.part[0] == "judge_identity" for item in project.unsettled()))
        judge.up = False
        try:
            daemon.until(lambda: failed_runs(daemon) == {"s0": 3, "s1": 3} and not daemon.active())
            asked = judge.requests
            daemon.quiet()
            assert failed_runs(daemon) == {"s0": 3, "s1": 3} and judge.requests == asked
        finally:
            judge.up = True
        said = subprocess.run(
            [M3PO, "status"],
            env=project.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "mas_table[s0]" in said.stdout and "held" in said.stdout and "3 runs failed" in said.stdout
        assert all(not outcome.error for outcome in project.run())
        daemon.until_settled()
        assert_right(project, before)


def failed_runs(daemon) -> dict[str, int]:
    """Failed runs of mas_table by shard."""
    return Counter(part for asset, part in map(what, daemon.runs(DagsterRunStatus.FAILURE)) if asset == "mas_table")


@pytest.mark.slow
def test_a_run_cancelled_by_hand_stays_so_until_something_changes(project, automated_study):
    before = heads_of(project)
    with Daemon(project) as daemon:
        project.write(edited(automated_study, epochs=2000))
        daemon.until(lambda: ("lora_adapter", "m3po") in [what(r) for r in daemon.runs(DagsterRunStatus.STARTED)])
        with project.instance() as instance:
            (run,) = (r for r in instance.get_runs() if what(r) == ("lora_adapter", "m3po") and not r.is_finished)
            instance.run_coordinator.cancel_run(run.run_id)
        daemon.until(lambda: not daemon.active())
        daemon.quiet()
        assert {item.part[0] for item in project.unsettled()} == {"lora_adapter", "benchmark_scores", "leaderboard"}
        project.write(edited(automated_study, alpha=5.0))
        daemon.until_settled()
        assert_right(project, before)


@pytest.mark.slow
def test_a_run_by_hand_and_a_backfill_beside_the_sensors(project, automated_study, judge):
    before, asked = heads_of(project), judge.requests - judge.probes
    known = Counter(row["key"] for row in project.ledger())
    with Daemon(project) as daemon:
        project.write(edited(automated_study, high=3.0, tokens=800))
        by_hand = subprocess.Popen([M3PO, "run"], env=project.environment(), stderr=subprocess.PIPE)
        backfill(project, ["mas_table"], ["s0", "s1"])
        _, said = by_hand.communicate(timeout=300)
        assert by_hand.returncode == 0, said.decode()
        daemon.until_settled()
        assert_right(project, before)
    # For the judge changed, each question is asked once more, whoever came first.
    new = Counter(row["key"] for row in project.ledger()) - known
    assert judge.requests - judge.probes - asked == new.total() > 0 and set(new.values()) == {1}
    assert objects(project, "mas_table") == {"s0": 2, "s1": 2}


def backfill(project, assets: list[str], partitions: list[str]) -> None:
    """A backfill as the UI requests it, for the daemon to carry out."""
    from dagster._core.execution.backfill import PartitionBackfill

    graph = project.definitions().resolve_asset_graph()
    with project.instance() as instance:
        instance.add_backfill(
            PartitionBackfill.from_asset_partitions(
                backfill_id="byhand",
                asset_graph=graph,
                partition_names=partitions,
                asset_selection=[dg.AssetKey(name) for name in assets],
                backfill_timestamp=0.0,
                tags={},
                dynamic_partitions_store=instance,
                all_partitions=False,
                title=None,
                description=None,
                run_config=None,
            )
        )


@pytest.mark.slow
def test_a_new_recipe_is_picked_up_once_the_definitions_are_reloaded(project, automated_study):
    before = heads_of(project)
    wider = deepcopy(automated_study)
    wider["recipes"]["flat"] = deepcopy(wider["recipes"]["m3po"]) | {"selection": {"rule": "m3p", "alpha": 0}}
    with Daemon(project) as daemon:
        daemon.until_settled()
        project.write(wider)
        daemon.quiet()
        assert not any("flat" in run.tags.get("dagster/partition", "") for run in daemon.runs())
        daemon.kill()
        daemon.start()
        daemon.until_settled()
        assert_right(project, before)
    assert objects(project, "adapter")["flat|0"] == 1


@pytest.mark.slow
def test_a_new_shard_is_picked_up_once_the_definitions_are_reloaded_and_the_old_ones_are_found_again(
    project, automated_study
):
    before, done = heads_of(project), trainings(project)
    wider = deepcopy(automated_study)
    wider["dataset"]["shards"] = 3
    with Daemon(project) as daemon:
        project.write(wider)
        daemon.quiet()
        daemon.kill()
        daemon.start()
        daemon.until_settled()
        assert project.unsettled() == [] and len(project.load().shards) == 3
        trained = trainings(project)
        project.write(automated_study)
        daemon.kill()
        daemon.start()
        daemon.until_settled()
        assert_right(project, before)
    # Prompts are dealt out anew, so every recipe's pairs come in another order and are trained on once.
    assert trained - done <= 2 and trainings(project) == trained


@pytest.mark.slow
def test_a_provider_that_changes_the_model_in_silence(project, automated_study, judge):
    before, events = heads_of(project), Counter(project.events())
    nightly = deepcopy(automated_study)
    nightly["automation"]["judge_check"] = "* * * * *"
    project.write(nightly)
    try:
        with Daemon(project) as daemon:
            daemon.until(lambda: counts_since(project, events)["judge_probe"] == 1)
            daemon.quiet()
            assert heads_of(project)["judge_probe", ""] == before["judge_probe", ""]
            assert counts_since(project, events)["judge_identity"] == 0
            judge.revision = 2
            daemon.until(lambda: heads_of(project)["judge_probe", ""] != before["judge_probe", ""])
            project.write(automated_study)
            daemon.until_settled()
            assert_right(project, before)
    finally:
        judge.revision = 1
    since = counts_since(project, events)
    assert since["mas_table"] == 2 and since["candidates"] == 0
    assert heads_of(project)["mas_table", "s0"] != before["mas_table", "s0"]


@pytest.mark.slow
def test_training_by_hand_waits_for_a_hand(project, automated_study):
    before = heads_of(project)
    by_hand = edited(automated_study, alpha=5.0)
    by_hand["automation"]["training"] = "by_hand"
    with Daemon(project) as daemon:
        project.write(by_hand)
        daemon.until(lambda: heads_of(project)["preference_pairs", "m3po|s1"] != before["preference_pairs", "m3po|s1"])
        daemon.quiet()
        assert [item.part for item in project.unsettled() if item.state == "stale"] == [("lora_adapter", "m3po")]
        assert not [run for run in daemon.runs() if what(run)[0] == "lora_adapter" and run_tags.WANTED in run.tags]
        subprocess.run([M3PO, "run", "--asset", "lora_adapter"], env=project.environment(), check=True, timeout=300)
        daemon.until_settled()
        assert_right(project, before)


@pytest.mark.slow
def test_an_event_log_in_postgres_that_begins_empty(project, automated_study, judge):
    before, asked, done = heads_of(project), judge.requests, trainings(project)
    with postgres() as url:
        shutil.rmtree(project.folder / "home")
        with Daemon(project, settings=f"{SETTINGS}\nstorage:\n  postgres:\n    postgres_url: {url}\n") as daemon:
            daemon.until_settled()
            assert heads_of(project) == before, "everything is found again in the store"
            # A request an image of the probe set.
            assert judge.requests == asked + 4 and trainings(project) == 0
            project.write(edited(automated_study, alpha=5.0))
            daemon.until_settled()
            assert_right(project, before)
            assert trainings(project) == 1
        assert done == 2
