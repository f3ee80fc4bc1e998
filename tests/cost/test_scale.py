"""Growth worked out by hand, the laws that any size keeps, and what a size is said to run into."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.cost import growth, told
from m3po_dagster.cost.assumptions import Range
from m3po_dagster.cost.deployment import Deployment, Measured
from m3po_dagster.cost.plan import ServedJudge, Training
from m3po_dagster.cost.scale import MOST_SHARDS, Scale, limits, scaled
from m3po_dagster.method.alignment.budget import PriceSettings
from tests.cost.test_estimate import PAPERS, PLAN, RLHF, SURE, costed, only

ON = Deployment(cards=10, gpu_hour=2.0)
MEASURED = Measured()
ONE_TRAINING = replace(PLAN, trainings=(Training("m3po", "dpo", 1, 3, False),))


def at(prompts=150_000, plan=ONE_TRAINING, on=ON, shards=None, assumed=SURE, measured=MEASURED) -> Scale:
    work = replace(PAPERS, prompts=prompts)
    return scaled(plan, work, costed(plan, work, assumed), assumed, on, measured, shards)


def test_hours_on_the_clock_are_whole_shards_on_whole_cards():
    cost = costed(ONE_TRAINING)
    found = at(shards=25)
    assert found.prompts_a_shard == 6_000
    assert only(found.shard_hours) == pytest.approx(only(cost.sampling_hours) / 25)
    # Ten cards take 25 shards in three rounds, the last with five of them idle.
    assert only(found.answering_hours) == pytest.approx(3 * only(cost.sampling_hours) / 25)
    assert only(found.parts_a_shard) == pytest.approx(only(found.shard_hours) * 60)
    (training,) = cost.trainings
    # Three runs at once on ten cards take as long as one.
    assert only(found.training_hours) == only(found.longest_training) == only(training.hours_a_run)
    assert only(at(on=replace_cards(1)).training_hours) == pytest.approx(3 * only(training.hours_a_run))
    assert only(found.gpu_money) == pytest.approx(2 * only(cost.gpu_hours))


def test_shards_fit_the_memory_and_are_a_multiple_of_the_cards():
    measured = Measured(memory_of_bytes=2, row_bytes=100)
    # 4.8 million rows of 1,300 bytes, twice: 12.48 GB.
    assert at(on=Deployment(cards=4, memory_gb=100), measured=measured).shards == 4
    assert at(on=Deployment(cards=4, memory_gb=2), measured=measured).shards == 8
    assert at(on=Deployment(cards=4, memory_gb=0.2), measured=measured).shards == 64
    assert at(on=Deployment(cards=4, memory_gb=0.01), measured=measured).shards == MOST_SHARDS
    assert at(3, on=Deployment(cards=4)).shards == 3


def test_rlhf_is_no_training_that_several_processes_could_share():
    found = at(plan=replace(PLAN, trainings=(*ONE_TRAINING.trainings, RLHF)))
    both = costed(replace(PLAN, trainings=(*ONE_TRAINING.trainings, RLHF))).trainings
    assert [only(found.longest_training), only(found.longest_rlhf)] == [only(one.hours_a_run) for one in both]
    assert only(found.training_hours) == only(found.longest_rlhf) > only(found.longest_training)


def replace_cards(cards: int) -> Deployment:
    return ON.model_copy(update={"cards": cards})


def test_memory_storage_and_requests_by_hand():
    measured = Measured(memory_of_bytes=2, row_bytes=100, filtered_bytes=300, pair_bytes=200)
    found = at(shards=50, measured=measured)
    # 3,000 prompts x 32 rows of 100 tokens: text, token id and log-prob, four bytes each.
    assert only(found.shard_memory_gb) == pytest.approx(3000 * 32 * (100 * 12 + 100) * 2e-9)
    disk = sum(only(one) for one in costed(ONE_TRAINING).disk.values())
    assert only(found.storage_gb) == pytest.approx(1e-9 * (disk + 150_000 * (300 + 200)))
    # Four assets and one recipe's pairs a shard; the recipe's adapters table and scores, and an adapter a seed.
    assert found.artifacts == 50 * 5 + 2 + 3
    assert only(found.writes) == pytest.approx(50 * only(found.parts_a_shard) + 3 * 255)
    # Each image to sample, by the one scorer, and by three trainings.
    assert only(found.reads) == 150_000 * (1 + 1 + 3) + 3 * 255
    assert only(found.request_money) == pytest.approx(only(found.writes) * 5e-6 + only(found.reads) * 4e-7)


def test_a_judges_ledger_and_pace_by_hand():
    judge = ServedJudge("judge", 8, PriceSettings(input=1.0, output=2.0))
    plan = replace(ONE_TRAINING, judges=(judge,))
    found, cost = at(plan=plan, shards=10), costed(plan)
    (load,) = found.loads
    assert only(cost.judges[0].requests) == 600_000
    assert only(load.ledger_gb) == pytest.approx(600_000 * 2_680e-9)
    # Ten cards sample a tenth of the time.
    assert only(load.requests_a_second) == pytest.approx(600_000 / (only(cost.sampling_hours) * 360))
    assert at().loads == ()


@given(st.integers(1, 10**8), st.integers(2, 50), st.integers(1, 200), st.floats(1, 2000))
def test_more_prompts_never_take_less(prompts, times, cards, memory_gb):
    on = Deployment(cards=cards, memory_gb=memory_gb)
    small, large = at(prompts, on=on), at(prompts * times, on=on)
    for one in (small, large):
        assert 1 <= one.shards <= min(MOST_SHARDS, one.prompts)
        assert one.prompts_a_shard * one.shards >= one.prompts
        fits = only(one.shard_memory_gb) <= memory_gb * (1 + 1e-9)
        assert fits or one.shards == min(MOST_SHARDS, one.prompts)
        assert fits or any("GB of memory" in text for text in limits(one, on))
    assert large.shards >= small.shards
    for name in ("training_hours", "storage_gb", "writes", "reads", "inspector_gb"):
        assert getattr(large, name).high >= getattr(small, name).high


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": 10_000_000, "on": Deployment(memory_gb=2)}, "GB of memory"),
        ({"shards": 120}, "120 shards"),
        ({"prompts": 10_000_000, "on": Deployment(part_seconds=0.1, memory_gb=500)}, "can be numbered"),
        ({"on": Deployment(cards=120), "shards": 99}, "21 of 120 cards"),
        ({"prompts": 10_000_000}, "the longest training takes"),
        ({"prompts": 1_000_000, "plan": replace(PLAN, trainings=(RLHF,))}, "trains in one process"),
        (
            {"prompts": 10_000_000, "plan": replace(ONE_TRAINING, judges=(ServedJudge("j", 8, None),))},
            "the ledger of j",
        ),
        ({"prompts": 100_000_000, "on": Deployment(memory_gb=300)}, "the inspector needs"),
        ({"prompts": 10_000_000}, "whether images changed"),
    ],
)
def test_what_a_size_runs_into_is_said(changes, said):
    found = at(**changes)
    assert any(said in text for text in limits(found, changes.get("on", ON)))
    small = at(4_000, shards=10)
    assert limits(small, ON) == []


def test_the_table_has_a_cell_for_every_size():
    plan = replace(ONE_TRAINING, judges=(ServedJudge("judge", 8, PriceSettings(input=1.0, output=2.0)),), rescored=True)
    rows = []
    for prompts in (4_000, 10_000_000):
        cost = costed(plan, replace(PAPERS, prompts=prompts))
        rows.append({**told.facts(cost), **growth.scale_facts(at(prompts, plan=plan))})
    cells = dict(growth.table(rows))
    assert all(len(row) == 2 for row in cells.values())
    assert cells["candidates"] == ["128,000", "320 M"]
    assert cells["judge, requests"] == ["16,000", "40 M"]
    assert cells["judge, ledger, GB"] == ["0.0429", "107"]
    assert "log-probs again, GPU-hours" in cells and "GPUs, money" in cells


def test_a_range_shows_both_ends():
    wide = SURE.model_copy(update={"distinct_share": Range(0.5, 1)})
    found = at(assumed=wide)
    assert growth.scale_facts(found)["inspector_gb"] == [0.326, 0.653]
