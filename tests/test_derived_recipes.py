"""Recipes made from others: only what was asked for differs, and a grid holds every training once."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.derived_recipes import derived, grid
from m3po_dagster.equal_recipes import effective, trainings
from m3po_dagster.study import MOST_RECIPES, Recipe, Study

PARTITION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
DPO = {"kind": "dpo", "learning_rate": 3e-4, "lora": {"r": 4}}
RECIPES = {
    "base": {},
    "sft": {"selection": {"rule": "best_only"}, "training": {"kind": "sft"}},
    "m3po": {"selection": {"rule": "m3p", "alpha": 0.5, "delta": 0.1}, "training": DPO, "seeds": [0, 1]},
    "ablation": {"selection": {"rule": "m3p", "alpha": 0}, "training": DPO},
}


def study(**recipes) -> Study:
    return Study.model_validate(
        {
            "name": "small",
            "dataset": {"sources": {"toy": {"format": "llava_instruct", "path": "/d.json", "image_root": "/images"}}},
            "model": {"path": "/model"},
            "judge": {"scorers": [{"kind": "clip", "name": "clip", "model": "/judge"}]},
            "recipes": {**RECIPES, **recipes},
            "benchmarks": {"pope": {"kind": "pope", "labels": {"random": "/r.json"}, "image_root": "/images"}},
        }
    )


def of(like: str, changes: dict, **options):
    return derived(like, study().recipes[like], changes, **options)


def test_only_what_was_asked_for_differs():
    made = of("m3po", {"selection.alpha": 0.75, "training.lora.alpha": 8, "training.beta": 0.2}, seeds=[3])
    assert made.settings == {
        "description": "m3po with alpha 0.75, lora.alpha 8, beta 0.2",
        "selection": {"rule": "m3p", "alpha": 0.75, "delta": 0.1},
        "training": {"kind": "dpo", "learning_rate": 3e-4, "lora": {"r": 4, "alpha": 8}, "beta": 0.2},
        "seeds": [3],
    }
    assert Recipe.model_validate(made.settings).training.lora.r == 4 and made.left_out == {}
    again = of("m3po", {}, description="mine")
    assert again.settings["description"] == "mine" and again.settings["seeds"] == [0, 1]
    assert effective(Recipe.model_validate(again.settings)) == effective(study().recipes["m3po"])


def test_another_rule_or_kind_keeps_what_it_uses_and_says_what_it_does_not():
    made = of("m3po", {"selection.rule": "vanilla"})
    assert made.left_out == dict.fromkeys(("selection.alpha", "selection.delta"), "rule vanilla has no use for it")
    assert Recipe.model_validate(made.settings).selection.rule == "vanilla"
    made = derived(
        "m3po", study().recipes["m3po"].model_copy(), {"selection.rule": "best_only", "training.kind": "sft"}
    )
    assert Recipe.model_validate(made.settings).training.kind == "sft"
    assert made.settings["training"] == {"kind": "sft", "learning_rate": 3e-4, "lora": {"r": 4}}
    # What was asked for by name is never dropped: the reader of study files refuses it by name.
    made = of("m3po", {"selection.rule": "vanilla", "selection.alpha": 1})
    assert made.settings["selection"]["alpha"] == 1 and list(made.left_out) == ["selection.delta"]


def test_another_kind_takes_over_what_means_the_same_there():
    dpo = {"kind": "dpo", "beta": 0.1, "learning_rate": 5e-5, "loss": "ipo", "epochs": 3, "schedule": "cosine"}
    dpo |= {"lora": {"r": 4}, "warmup_ratio": 0.1}
    recipe = Recipe.model_validate({"selection": {"rule": "m3p"}, "training": dpo})
    rlhf = {"selection.rule": "every_answer", "training.kind": "rlhf"}
    made = derived("m3po", recipe, rlhf)
    other = "to kind rlhf it is another setting with a default of its own"
    assert made.left_out == {
        "training.loss": "kind rlhf has no use for it",
        **dict.fromkeys(("training.beta", "training.learning_rate", "training.epochs"), other),
    }
    assert made.settings["training"] == {
        "kind": "rlhf",
        "schedule": "cosine",
        "lora": {"r": 4},
        "warmup_ratio": 0.1,
    }
    training = Recipe.model_validate(made.settings).training
    assert (training.beta, training.learning_rate, training.epochs) == (0.05, 1e-5, 1)
    made = derived("m3po", recipe, {**rlhf, "training.beta": 0.2, "training.epochs": 2})
    assert list(made.left_out) == ["training.loss", "training.learning_rate"]
    assert (made.settings["training"]["beta"], made.settings["training"]["epochs"]) == (0.2, 2)
    # The way back is the same, and a kind that stays takes over all.
    back = derived("rlhf", Recipe.model_validate(made.settings), {"selection.rule": "m3p", "training.kind": "dpo"})
    assert back.left_out == dict.fromkeys(
        ("training.beta", "training.epochs"), "to kind dpo it is another setting with a default of its own"
    )
    assert derived("m3po", recipe, {"training.kind": "dpo"}).settings["training"] == dpo


def test_a_setting_of_an_unknown_kind_or_rule_is_left_for_the_reader_to_refuse():
    for changes in ({"training.kind": "ppo"}, {"selection.rule": "m4p"}, {"training.kind": ["dpo"]}):
        made = of("m3po", changes)
        assert made.left_out == {} and made.settings["training"]["lora"] == {"r": 4}


def test_a_preset_fills_what_the_model_recipe_gave():
    made = of("m3po", {"training.preset": "safe", "training.batch_size": 4})
    assert made.left_out == {"training.learning_rate": "preset safe fills it"}
    training = Recipe.model_validate(made.settings).training
    assert (training.learning_rate, training.batch_size, training.lora.r) == (5e-6, 4, 4)
    made = of("m3po", {"training.preset": "safe", "training.learning_rate": 1e-4})
    assert made.left_out == {} and Recipe.model_validate(made.settings).training.learning_rate == 1e-4


@pytest.mark.parametrize("place", ["alpha", "selection", "selection.", "seeds.0", "training.beta.x.y"])
def test_what_is_no_setting_is_refused(place):
    with pytest.raises(ValueError, match="no setting of a recipe"):
        of("m3po", {"training.beta": 1, place: 1})
    with pytest.raises(ValueError, match="recipe 'base' selects no pairs"):
        of("base", {"selection.alpha": 1})


def test_the_papers_grid_has_twenty_one_trainings_and_the_rest_say_what_they_are():
    points = grid(study(), "m3po", [0, 0.1, 0.25, 0.5, 0.75, 1], [0, 0.1, 0.2, 0.3])
    assert len(points) == 24
    same = {point.name: point.same_as for point in points if point.same_as}
    assert same == {f"m3po_a0_d{delta}": "ablation" for delta in ("0", "0.1", "0.2", "0.3")} | {
        "m3po_a0.5_d0.1": "m3po"
    }
    new = {point.name: point.settings for point in points if not point.same_as}
    assert list(new)[:3] == ["m3po_a0.1_d0", "m3po_a0.1_d0.1", "m3po_a0.1_d0.2"]
    # With the two that were there: 21 distinct points, each once.
    after = study(**new)
    assert len({first for first, _ in trainings(after.recipes)} - {"sft"}) == 21 and after.aliases() == {}
    assert after.recipes["m3po_a0.25_d0.2"].seeds == (0, 1)


def test_a_table_of_the_paper_is_one_line_of_the_grid():
    names = [point.name for point in grid(study(), "m3po", [0, 0.25], None)]
    assert names == ["m3po_a0", "m3po_a0.25"]
    deltas = grid(study(), "m3po", None, [0.1, 0.3], seeds=[0, 1, 2], prefix="d")
    assert [(point.name, point.same_as) for point in deltas] == [("d_d0.1", "m3po"), ("d_d0.3", "")]
    assert deltas[1].settings["seeds"] == [0, 1, 2] and deltas[1].settings["selection"]["alpha"] == 0.5


def test_without_an_ablation_in_the_study_the_first_point_of_alpha_0_is_it():
    bare = study()
    bare = bare.model_copy(update={"recipes": {k: v for k, v in bare.recipes.items() if k != "ablation"}})
    points = grid(bare, "m3po", [0], [0, 0.1])
    assert [(point.name, point.same_as) for point in points] == [("m3po_a0_d0", ""), ("m3po_a0_d0.1", "m3po_a0_d0")]


def test_a_name_with_other_settings_is_refused():
    taken = study(m3po_a1={"selection": {"rule": "m3p", "alpha": 2}, "training": DPO})
    with pytest.raises(ValueError, match="'m3po_a1' is there already with other settings: give another prefix"):
        grid(taken, "m3po", [1], None)


def test_more_recipes_than_dagster_follows_are_refused_with_the_count():
    values = [number / 10 for number in range(1, 11)]
    words = f"the study has 4 recipes and the grid adds 109: 113 are more than the {MOST_RECIPES} that Dagster follows"
    with pytest.raises(ValueError, match=words):
        grid(study(), "m3po", [*values, 2], [*values[:9], 5])
    assert len(grid(study(), "m3po", values[:9], values)) == 90


def test_what_is_wrong_with_a_recipe_as_a_whole_is_said_without_a_place():
    with pytest.raises(ValueError, match=r"^recipe 'm3po_a1': a seed stands twice"):
        grid(study(), "m3po", [1], None, seeds=[0, 0])


@pytest.mark.parametrize(
    ("like", "alphas", "words"),
    [
        ("sft", [1], "'sft' has no alpha and delta: its rule is best_only; name one of rule m3p or flipped"),
        ("base", [1], "'base' has no alpha and delta: its rule is none"),
        ("m3po", [-1], r"recipe 'm3po_a-1': selection.alpha: Input should be greater than or equal to 0"),
    ],
)
def test_what_has_no_grid_is_refused(like, alphas, words):
    with pytest.raises(ValueError, match=words):
        grid(study(), like, alphas, None)


figures = st.floats(0, 1e6, allow_nan=False).map(lambda x: round(x, 9))


@settings(max_examples=50, deadline=None)
@given(alphas=st.lists(figures, min_size=1, max_size=4), deltas=st.lists(figures, min_size=1, max_size=4))
def test_every_point_has_a_name_of_its_own_that_dagster_takes(alphas, deltas):
    points = grid(study(), "m3po", alphas, deltas)
    assert len(points) == len(set(alphas)) * len(set(deltas))
    names = [point.name for point in points]
    assert len(set(names)) == len(names) and all(PARTITION.match(name) and len(name) <= 80 for name in names)
    settings_of = {
        name: Recipe.model_validate(point.settings).selection for name, point in zip(names, points, strict=True)
    }
    at = itertools.product(dict.fromkeys(alphas), dict.fromkeys(deltas))
    assert [(one.alpha, one.delta) for one in settings_of.values()] == list(at)
