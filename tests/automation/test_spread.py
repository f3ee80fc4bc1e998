"""How the job `everything` is cut up for a cluster: every asset in one step, every shard and recipe in one group."""

import re

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.automation import spread
from m3po_dagster.graph import STAGES
from m3po_dagster.runner import Selection
from m3po_dagster.study import DEFAULT_STUDY, load_study

STEPS = (
    spread.LOOK,
    spread.SAMPLE,
    spread.SCORE,
    spread.LOG_PROBS,
    spread.SELECT,
    spread.TRAIN,
    spread.BENCHMARK,
    spread.REPORT,
)


STUDY = load_study(DEFAULT_STUDY)


def with_shards(study, number: int):
    return study.model_copy(update={"dataset": study.dataset.model_copy(update={"shards": number})})


def test_each_asset_is_one_steps_in_the_graphs_order():
    assert [name for step in STEPS for name in step] == list(STAGES)


def test_no_step_stands_on_a_later_one():
    position = {name: number for number, step in enumerate(STEPS) for name in step}
    assert all(position[above] <= position[name] for name, stage in STAGES.items() for above in stage.inputs)


@given(shards=st.integers(1, 99), groups=st.integers(1, 120))
def test_every_shard_is_in_one_group_and_groups_are_alike(shards, groups):
    study = with_shards(STUDY, shards)
    found = spread.shard_groups(study, Selection(), groups)
    assert sorted(shard for group in found for shard in group) == sorted(study.shards)
    assert len(found) == min(groups, shards)
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_only_chosen_shards_are_dealt_out():
    study = with_shards(STUDY, 6)
    assert spread.shard_groups(study, Selection(shards=("s1", "s3", "s5")), 2) == [("s1", "s5"), ("s3",)]


def test_recipes_of_the_same_training_share_a_group():
    recipes = {**STUDY.recipes, "again": STUDY.recipes["m3po"], "a.b": STUDY.recipes["sft"]}
    study = STUDY.model_copy(update={"recipes": recipes})
    found = spread.recipe_groups(study, Selection(), 1)
    assert ("m3po", "again") in found and ("sft", "a.b") in found
    assert sorted(name for group in found for name in group) == sorted(recipes)
    assert spread.recipe_groups(study, Selection(recipes=("again", "base")), 1) == [("base",), ("again",)]


def test_a_group_is_found_again_by_its_mapping_key():
    groups = spread.shard_groups(with_shards(STUDY, 7), Selection(), 3)
    for number, keys in enumerate(groups):
        key = spread._name_of_group(number, keys)
        assert re.fullmatch("[A-Za-z0-9_]+", key) and spread._own_group(key, groups) == keys
    with pytest.raises(dg.Failure, match="Start the job again"):
        spread._own_group("7_s7", groups)
