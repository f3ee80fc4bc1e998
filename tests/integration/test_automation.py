"""The sensors under Dagster's real daemon: whatever is edited, killed or started by hand, the graph ends fresh.

The judge is a served one on loopback, so that scoring costs requests that can be counted.
"""

from collections import Counter
from copy import deepcopy

import pytest

from m3po_dagster.current import read_heads
from tests.integration.daemon import Daemon, counts_since, objects
from tests.served_judge import ServedJudge

TRAINED = ("sft", "m3po")


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
    study["generation"] |= {"n": 4, "part_prompts": 12}
    del study["benchmarks"]["pope"]
    study["automation"] = {"running": True, "look_every": 5}
    return study


@pytest.fixture(scope="module")
def settled(tmp_path_factory, automated_study):
    """A project of that study, run once."""
    from tests.integration.conftest import Project

    project = Project(tmp_path_factory.mktemp("settled"))
    project.write(automated_study)
    assert [outcome.error for outcome in project.run() if outcome.error] == []
    return project


@pytest.fixture
def project(settled, tmp_path):
    """A copy of it, to be changed."""
    import shutil

    from tests.integration.conftest import Project

    shutil.copytree(settled.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def edited(study: dict, **changes) -> dict:
    """The study with another judge (max_reply_tokens) or another alpha of m3po or learning rate of sft."""
    changed = deepcopy(study)
    if "judge" in changes:
        changed["judge"]["scorers"][0]["max_reply_tokens"] = changes["judge"]
    if "alpha" in changes:
        changed["recipes"]["m3po"]["selection"]["alpha"] = changes["alpha"]
    if "rank" in changes:
        changed["recipes"]["sft"]["training"]["lora"] = {"r": changes["rank"], "alpha": 8}
    return changed


def assert_right(project, before: dict) -> None:
    """Fresh by our own reckoning and by Dagster's; nothing made twice; what a judge can't touch is as it was."""
    assert project.unsettled() == []
    assert {str(status.value) for status in project.dagster_staleness().values()} == {"FRESH"}
    with project.instance() as instance:
        now = read_heads(instance)
    for part, head in before.items():
        if part[0] in ("candidates", "logprob_table", "filtered_instructions"):
            assert now[part] == head
    for asset in ("adapter", "mas_table", "preference_pairs"):
        made = Counter((artifact.key.partition, artifact.fingerprint) for artifact in project.store.list(asset))
        assert set(made.values()) <= {1}


def heads_of(project) -> dict:
    with project.instance() as instance:
        return read_heads(instance)


def test_a_judge_edited_while_the_first_edit_is_being_scored(project, automated_study):
    before, events, adapters = heads_of(project), Counter(project.events()), objects(project, "adapter")
    with Daemon(project) as daemon:
        project.write(edited(automated_study, judge=400))
        daemon.until(lambda: ("mas_table", "s0") in daemon.active() or ("mas_table", "s1") in daemon.active())
        project.write(edited(automated_study, judge=300))
        daemon.until_settled()
        assert_right(project, before)
    since = counts_since(project, events)
    assert since["candidates"] == since["logprob_table"] == since["filtered_instructions"] == 0
    assert objects(project, "mas_table")["s0"] <= 3
    # The graders' verdicts don't depend on the reply's length: same scores, so same pairs, and nothing is trained.
    assert objects(project, "adapter") == adapters and since["preference_pairs"] == 0
