"""Damaged results: found by their hashes when a step reads them, set aside, and made again, nobody having to help."""

import json
import shutil

import pytest

from m3po_dagster.current import read_heads
from m3po_dagster.runner import MOST_LOSSES, Selection
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import Damaged
from tests.integration.damaging import damage
from tests.integration.test_bad_input import m3po
from tests.integration.test_kill_loop import contents_of, results_of


def heads_of(project) -> dict:
    with project.instance() as instance:
        return read_heads(instance)


def current(project, asset: str, partition: str) -> Artifact:
    return project.store.find(asset, partition, heads_of(project)[asset, partition].fingerprint)


def test_a_damaged_input_is_set_aside_made_again_and_the_step_with_it(copy_of_made):
    project, before = copy_of_made, results_of(copy_of_made)
    damage(current(project, "candidates", "s0"), "text")
    shutil.rmtree(current(project, "mas_table", "s0").folder)
    outcomes = project.run()
    met, *after = outcomes
    assert met.assets[0] == "mas_table" and met.lost == ("candidates[s0]",)
    assert "met a damaged candidates[s0]" in met.error and "It was set aside in" in met.error
    assert [outcome.error for outcome in after if outcome.error] == []
    assert after[0].assets[:2] == ("candidates", "mas_table") and after[0].partition == "s0"
    assert results_of(project) == before and project.unsettled() == []
    (aside,) = project.store.quarantined()
    assert "candidates/s0" in aside.folder and aside.reason in met.error


def test_a_steps_own_damaged_result_is_made_again_at_once(copy_of_made):
    """It is found when a run describes what it reuses, as a run from the web page does."""
    project, before = copy_of_made, results_of(copy_of_made)
    damage(current(project, "preference_pairs", "m3po|s0"))
    with project.instance() as instance:
        from m3po_dagster.resources.study import StoreResource
        from m3po_dagster.runner import Runner

        runner = Runner(project.definitions(), project.load(), StoreResource(root=project.root), instance)
        outcome = runner._run(["preference_pairs"], "m3po|s0")
    assert outcome.error is None and outcome.reused == () and outcome.lost == ()
    assert len(project.store.quarantined()) == 1
    assert results_of(project) == before and project.unsettled() == []


def test_a_damaged_manifest_that_was_whole_when_it_was_looked_at_is_met_by_the_step(copy_of_made):
    project, before = copy_of_made, results_of(copy_of_made)
    project.unsettled()  # what was found whole is only looked for after this
    path = current(project, "candidates", "s1").folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"created"', b'"crested"'))
    shutil.rmtree(current(project, "logprob_table", "s1").folder)
    outcomes = project.run(Selection(assets=("candidates", "mas_table", "logprob_table")))
    assert outcomes[0].lost == ("candidates[s1]",) and "no longer holds candidates[s1]" in outcomes[0].error
    assert [outcome.error for outcome in outcomes[1:] if outcome.error] == []
    assert results_of(project) == before
    assert len(project.store.quarantined()) == 1


@pytest.mark.slow
def test_all_of_a_store_damaged_is_found_and_made_again(copy_of_made):
    """Each stage meets the damage of the one before; what nobody had to read, the doctor finds."""
    project = copy_of_made
    contents, results = contents_of(project), results_of(project)
    for artifact in list(project.store.list()):
        damage(artifact)
    shutil.rmtree(project.folder / "store" / "leaderboard")
    done = m3po(project, "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DAMAGE" in done.stderr and "FAILED" not in done.stderr
    met = {aside.folder.split("/")[1] for aside in project.store.quarantined()}
    assert met >= {"benchmark_scores", "benchmark_answers", "benchmark_data", "lora_adapter", "adapter"}

    done = m3po(project, "doctor", "store", "--repair", "--json")
    found = json.loads(done.stdout)
    assert found["damaged"] == len(found["set aside now"]) > 0
    assert done.returncode == 0, done.stderr
    done = m3po(project, "run")
    assert done.returncode == 0, done.stderr[-3000:]
    done = m3po(project, "doctor", "store", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["damaged"] == 0 and found["whole"] == len(contents) + 1
    assert results_of(project) == results and project.unsettled() == []
    assert contents_of(project) == contents
    assert {aside.folder.split("/")[1] for aside in project.store.quarantined()} == {key.asset for key in contents}


@pytest.mark.slow
def test_a_disk_that_spoils_whatever_is_written_is_no_endless_loop(copy_of_made, monkeypatch):
    project = copy_of_made
    shutil.rmtree(current(project, "mas_table", "s0").folder)
    table = Artifact.table

    def spoilt(self, *arguments, **options):
        if self.key[:2] == ("candidates", "s0"):
            raise Damaged(self.folder, self.key, "spoilt")
        return table(self, *arguments, **options)

    monkeypatch.setattr(Artifact, "table", spoilt)
    outcomes = project.run(Selection(assets=("candidates", "mas_table"), shards=("s0",)))
    assert 0 < sum(bool(outcome.lost) for outcome in outcomes) <= MOST_LOSSES + 1
    assert outcomes[-1].error
