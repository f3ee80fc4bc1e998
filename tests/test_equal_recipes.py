"""Recipes that come to the same training: by what they select on any candidates, and by nothing else."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.equal_recipes import effective, first_equals, trained_once, trainings
from m3po_dagster.method.selection import SelectionSettings, select_pairs
from m3po_dagster.study import Recipe
from tests.method.selection_tables import random_table

DPO = {"kind": "dpo", "beta": 0.1}


def recipe(selection: dict | None = None, training: dict | None = None, **others) -> Recipe:
    return Recipe.model_validate({"selection": selection or {"rule": "m3p"}, "training": training or DPO, **others})


def firsts(*recipes: Recipe) -> list[str]:
    return list(first_equals({str(number): one for number, one in enumerate(recipes)}).values())


RULES = st.sampled_from(["m3p", "flipped"])
FIGURES = st.sampled_from([0, 0.0, 0.1, 0.5])
SELECTIONS = st.builds(
    lambda rule, alpha, delta, bonus, confidence: {
        "rule": rule,
        "alpha": alpha,
        "delta": delta,
        "allow_bonus": bonus,
        "confidence": confidence,
    },
    RULES,
    FIGURES,
    FIGURES,
    st.booleans(),
    st.sampled_from(["mean", "sum"]),
)


@settings(max_examples=40, deadline=None)
@given(one=SELECTIONS, other=SELECTIONS, seed=st.integers(0, 10_000))
def test_what_is_called_the_same_selects_the_same_pairs_of_any_candidates(one, other, seed):
    same = firsts(recipe(one), recipe(other)) == ["0", "0"]
    assert same == (effective(recipe(one)) == effective(recipe(other)))
    if not same:
        return
    # Enough candidates for ties, unscored and cut answers; the same to the bit, the score S included.
    table = random_table(seed, prompts=20, width=7)
    results = [select_pairs(table, SelectionSettings(**selection)) for selection in (one, other)]
    assert results[0].pairs.equals(results[1].pairs) and results[0].dropped.equals(results[1].dropped)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"delta": 0.3}, True),
        ({"allow_bonus": True}, True),
        ({"alpha": 0.0, "delta": 7}, True),
        ({"alpha": 1e-9}, False),
        ({"confidence": "sum"}, False),
        ({"min_gap": 0.1}, False),
        ({"rule": "flipped"}, False),
    ],
)
def test_without_a_penalty_its_margin_counts_for_nothing_and_all_else_does(changes, same):
    ablation = {"rule": "m3p", "alpha": 0, "delta": 0.1}
    assert (firsts(recipe(ablation), recipe(ablation | changes)) == ["0", "0"]) == same


def test_with_a_penalty_delta_counts():
    assert firsts(recipe({"rule": "m3p", "alpha": 0.5}), recipe({"rule": "m3p", "alpha": 0.5, "delta": 0.2})) == [
        "0",
        "1",
    ]


def test_defaults_spelled_out_names_and_seeds_are_no_difference_and_the_training_is():
    spelled = recipe(
        {"rule": "m3p", "alpha": 0.5, "delta": 0.1}, DPO | {"learning_rate": 5e-5}, seeds=(4,), description="x"
    )
    other = recipe(training=DPO | {"beta": 0.2})
    assert firsts(recipe(), other, spelled, other) == ["0", "1", "0", "1"]


def test_each_training_is_counted_once_with_all_seeds_that_any_asks_for():
    recipes = {
        "base": Recipe(),
        "ablation": recipe({"rule": "m3p", "alpha": 0}, seeds=(0, 1)),
        "m3po": recipe(),
        "twin": recipe({"rule": "m3p", "alpha": 0, "delta": 0.3}, seeds=(1, 2)),
    }
    assert first_equals(recipes)["twin"] == "ablation"
    once = trained_once(recipes)
    assert {name: one.seeds for name, one in once.items()} == {"ablation": (0, 1, 2), "m3po": (0,)}
    assert once["ablation"].selection == recipes["ablation"].selection
    assert trainings(recipes) == {("ablation", 0), ("ablation", 1), ("ablation", 2), ("m3po", 0)}


def test_the_oracle_would_see_a_difference():
    """The candidates of the law above do tell selections apart that differ."""
    table = random_table(3, prompts=20, width=7)
    results = [select_pairs(table, SelectionSettings(rule="m3p", alpha=alpha)).pairs for alpha in (0, 0.5)]
    assert not results[0].equals(results[1]) and isinstance(results[0], pa.Table)
