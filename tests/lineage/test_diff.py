"""What differs between two adapters, against SQL over the store's files."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3po_dagster.lineage.diff import diff
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.pair_diff import KINDS, counts_by_shard
from m3po_dagster.lineage.render import diff_lines
from m3po_dagster.storage.errors import StoreError
from tests.lineage.lineage_oracle import Oracle
from tests.lineage.lineage_world import Wanted, World

RECIPE = ("lora_adapter", "m3po")


def compared(world, first, second):
    return diff(Manifests(world.store), first[RECIPE], second[RECIPE])


def told(result) -> dict[tuple[str, str], tuple]:
    return {(item.topic, item.key): (item.first, item.second) for item in result.differences}


def check_pairs(world, result) -> None:
    """Every prompt's kind as SQL says it, and the counts of it."""
    expected = Oracle(world.store.root).diff("lora_adapter", result.first.fingerprint, result.second.fingerprint)
    rows = result.pairs.to_pylist()
    assert {row["prompt_id"]: row["kind"] for row in rows} == expected and len(rows) == len(expected)
    assert result.totals() == {kind: Counter(expected.values())[kind] for kind in KINDS}
    shards = counts_by_shard(result.pairs)
    assert {kind: sum(row[kind] for row in shards) for kind in KINDS} == result.totals()


def test_an_adapter_differs_in_nothing_from_itself(world, wanted):
    made = world.make(wanted)
    result = compared(world, made, made)
    assert result.differences == () and result.totals()["same"] == result.pairs.num_rows == result.first.pairs > 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"recipes": {"m3po": 2.0}}, {("recipe", "selection.alpha"): (0.5, 2.0)}),
        ({"judge": "lenient"}, {("judge", "scorer.settings.strictness"): ("strict", "lenient")}),
        ({"beta": 0.2}, {("training", "beta"): (0.1, 0.2)}),
        ({"layout": "packed"}, {("training", "layout"): ("trl", "packed")}),
        ({"seeds": (0, 1)}, {("adapter", "seeds"): ((0,), (0, 1))}),
    ],
    ids=str,
)
def test_one_change_is_named_alone(world, wanted, change, expected):
    wanted = wanted.but(prompts=24)
    first, second = world.make(wanted), world.make(wanted.but(**change))
    result = compared(world, first, second)
    assert told(result) == expected
    check_pairs(world, result)
    backwards = compared(world, second, first)
    assert told(backwards) == {key: (after, before) for key, (before, after) in expected.items()}
    swapped = {"added": "removed", "removed": "added"}
    assert backwards.totals() == {kind: result.totals()[swapped.get(kind, kind)] for kind in KINDS}


def test_another_model_gives_other_answers_under_the_same_ids(world, wanted):
    first, second = world.make(wanted), world.make(wanted.but(model="two"))
    result = compared(world, first, second)
    assert {topic for topic, _ in told(result)} == {"base model"}
    assert result.pairs["pair_id_1"].equals(result.pairs["pair_id_2"])
    assert result.totals()["changed"] == result.first.pairs > 0
    check_pairs(world, result)


def test_a_served_judge_that_answers_differently_shows_though_no_setting_changed(world, wanted):
    first, second = world.make(wanted), world.make(wanted.but(answers="second"))
    assert first["judge_identity", ""].manifest.settings == second["judge_identity", ""].manifest.settings
    # The same scores came of it, so nothing was trained again and the adapter is the same one.
    assert first[RECIPE].key == second[RECIPE].key
    third = world.make(wanted.but(answers="third", dataset="streets"))
    contents = [made["judge_identity", ""].data_version for made in (first, third)]
    assert told(compared(world, first, third))["judge", "content"] == tuple(contents)


def test_a_judge_that_changed_one_shard_alone_shows_both_judges(world, wanted):
    wanted = wanted.but(prompts=24)
    first, second = world.make(wanted), world.make(wanted.but(judge="lenient", judged_apart=("s1",)))
    result = compared(world, first, second)
    ((one, other),) = told(result).values()
    assert [item["scorer"]["settings"]["strictness"] for item in one] == ["strict"]
    assert {item["scorer"]["settings"]["strictness"] for item in other} == {"strict", "lenient"}
    by_shard = {row["shard"]: row for row in counts_by_shard(result.pairs)}
    assert by_shard["s0"]["changed"] == 0 and by_shard["s1"]["changed"] > 0
    check_pairs(world, result)


def test_other_numbers_of_shards_still_match_prompt_by_prompt(world, wanted):
    wanted = wanted.but(prompts=24)
    result = compared(world, world.make(wanted), world.make(wanted.but(shards=3)))
    assert told(result) == {("dataset", "settings.shards"): (2, 3)}
    assert result.totals() == {"same": result.first.pairs, "changed": 0, "added": 0, "removed": 0}
    check_pairs(world, result)


def test_two_studies_share_no_prompt(world, wanted):
    result = compared(world, world.make(wanted), world.make(wanted.but(dataset="streets")))
    totals = result.totals()
    assert totals["same"] == totals["changed"] == 0
    assert (totals["removed"], totals["added"]) == (result.first.pairs, result.second.pairs)
    assert {topic for topic, _ in told(result)} == {"dataset"}
    check_pairs(world, result)


def test_several_pairs_of_a_prompt_are_compared_one_by_one(world, wanted):
    """Those of both sides are the same wherever they stand; of the others each is counted once."""
    one = wanted.but(prompts=24, pairs_a_prompt=2)
    first, second = world.make(one), world.make(one.but(judge="lenient", pairs_a_prompt=3))
    result = compared(world, first, second)
    sides = [
        {
            (row["prompt_id"], row["pair_id"])
            for shard in ("s0", "s1")
            for row in made["preference_pairs", f"m3po|{shard}"].table().to_pylist()
        }
        for made in (first, second)
    ]
    expected = Counter()
    for prompt in {prompt for side in sides for prompt, _ in side}:
        mine, theirs = ({pair for name, pair in side if name == prompt} for side in sides)
        alone, new = len(mine - theirs), len(theirs - mine)
        expected += Counter(same=len(mine & theirs), changed=min(alone, new), removed=max(0, alone - new))
        expected += Counter(added=max(0, new - alone))
    assert result.totals() == {kind: expected[kind] for kind in KINDS}
    assert all(expected[kind] for kind in KINDS)
    rows = result.pairs.to_pylist()
    for side, name in zip(sides, ("pair_id_1", "pair_id_2"), strict=True):
        assert sorted(row[name] for row in rows if row[name]) == sorted(pair for _, pair in side)


def test_lost_pairs_are_an_error_that_says_which(world, wanted):
    first, second = world.make(wanted), world.make(wanted.but(judge="lenient"))
    (second["preference_pairs", "m3po|s1"].folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"shard s1.*no longer in the store"):
        compared(world, first, second)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Wanted,
            prompts=st.integers(2, 20),
            shards=st.integers(1, 3),
            model=st.sampled_from(["one", "two"]),
            judge=st.sampled_from(["strict", "lenient"]),
            recipes=st.sampled_from([{"m3po": 0.5}, {"m3po": 1.0}]),
        ),
        min_size=2,
        max_size=2,
    )
)
def test_any_two_adapters_differ_as_sql_says(tmp_path_factory, pair):
    # A shard without prompts has no part in a study.
    pair = [item.but(shards=min(item.shards, item.prompts // 2)) for item in pair]
    world = World(tmp_path_factory.mktemp("any"))
    check_pairs(world, compared(world, *(world.make(item) for item in pair)))


def test_two_names_of_one_training_differ_in_their_name_alone(world, wanted):
    made = world.make(wanted.but(recipes={"ablation": 0.0, "twin": 0.0}, same={"twin": "ablation"}))
    first, second = (made["lora_adapter", name] for name in ("ablation", "twin"))
    result = diff(Manifests(world.store), first, second)
    assert result.same_adapters and result.to_dict()["same_adapters"]
    assert {(item.topic, item.key) for item in result.differences} == {("adapter", "recipe")}
    assert result.totals()["same"] == result.first.pairs > 0
    assert result.second.shared_with == ("ablation",) and result.first.shared_with == ()
    assert "adapters      the same: both come to one training" in list(diff_lines(result, False))
    assert not diff(Manifests(world.store), first, first).same_adapters
