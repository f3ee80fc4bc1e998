from copy import deepcopy

import pytest

from m3po_dagster import recipe_roles
from m3po_dagster.evaluation.board import Curve, Question
from m3po_dagster.study import Study, load_study

KEPT = ("base", "sft", "rlhf", "vanilla", "m3po_alpha0", "m3po", "rm_dpo", "random", "flipped")


def some_recipes() -> dict:
    """The leaderboard study with these recipes alone, whatever others it has."""
    settings = load_study("studies/easy_scenes_leaderboard.yaml").model_dump(exclude_unset=True)
    return settings | {"recipes": {name: settings["recipes"][name] for name in KEPT}}


SETTINGS = some_recipes()
STUDY = Study.model_validate(deepcopy(SETTINGS))


def study(leaderboard=None, **recipes) -> Study:
    """That study with recipes added, changed, or left out (None)."""
    settings = deepcopy(SETTINGS)
    for name, change in recipes.items():
        if change is None:
            del settings["recipes"][name]
        else:
            settings["recipes"][name] = deepcopy(settings["recipes"]["m3po"]) | change
    if leaderboard is not None:
        settings["leaderboard"] = leaderboard
    return Study.model_validate(settings)


def like_m3po(**selection):
    return {"selection": STUDY.recipes["m3po"].selection.model_dump() | selection}


def test_base_and_m3po_are_compared_with_where_they_are():
    assert recipe_roles.references(STUDY) == ("base", "m3po")
    assert recipe_roles.references(study(m3po=None)) == ("base",)
    assert recipe_roles.references(study({"compare_with": ["sft", "base"]})) == ("base", "sft")
    assert recipe_roles.references(study({"compare_with": []})) == ("base",)
    with pytest.raises(ValueError, match=r"leaderboard.compare_with: there is no recipe 'gone'"):
        study({"compare_with": ["gone"]})


def test_the_paper_s_questions_are_asked_of_the_recipes_there_are():
    asked = recipe_roles.questions(STUDY)
    assert asked[0] == Question("Does the confidence term help?", "m3po", "m3po_alpha0")
    assert {(one.text, one.theirs) for one in asked[1:] if "beat" in one.text} == {
        ("Does M3PO beat SFT on the best answers?", "sft"),
        ("Does M3PO beat vanilla DPO?", "vanilla"),
        ("Does M3PO beat RM-DPO?", "rm_dpo"),
        ("Does M3PO beat simulated RLHF?", "rlhf"),
    }
    controls = [(one.ours, one.theirs) for one in asked if "control" in one.text]
    for name in ("random", "flipped"):
        assert ("m3po", name) in controls and (name, "base") in controls
    assert recipe_roles.questions(study(m3po=None)) == []
    assert "confidence" not in str(recipe_roles.questions(study(m3po_alpha0=None)))


def test_a_curve_is_of_recipes_that_differ_in_one_setting_alone():
    slower = STUDY.recipes["m3po"].training.model_dump() | {"learning_rate": 1e-5}
    made = study(
        large=like_m3po(alpha=1.0),
        other=like_m3po(alpha=0.75, confidence="sum"),
        wide=like_m3po(delta=0.3),
        both=like_m3po(alpha=0.9, delta=0.3),
        slow=like_m3po(alpha=0.25) | {"training": slower},
    )
    assert recipe_roles.curves(made) == [
        Curve("alpha", "m3po", {"m3po_alpha0": 0.0, "m3po": 0.5, "large": 1.0}),
        Curve("delta", "m3po", {"m3po": 0.1, "wide": 0.3}),
    ]
    assert [curve.setting for curve in recipe_roles.curves(STUDY)] == ["alpha"]
    assert recipe_roles.curves(study(m3po_alpha0=None)) == []


def test_the_leaderboard_study_has_the_curves_of_tables_5_and_6():
    assert [
        (curve.setting, list(curve.values.values()))
        for curve in recipe_roles.curves(load_study("studies/easy_scenes_leaderboard.yaml"))
    ] == [
        ("alpha", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]),
        ("delta", [0.0, 0.1, 0.2, 0.3]),
    ]


def test_a_recipe_made_from_one_with_a_preset_is_trained_alike():
    """`m3po sweep` spells out what the preset of m3po filled."""
    preset = {"training": {"kind": "dpo", "preset": "safe"}}
    filled = study(m3po=preset).recipes["m3po"].training.model_dump()
    made = study(
        m3po=preset,
        m3po_alpha0=like_m3po(alpha=0) | {"training": filled},
        wide=like_m3po(delta=0.3) | {"training": filled},
        slow=like_m3po(alpha=0.9) | {"training": filled | {"learning_rate": 1e-5}},
    )
    assert recipe_roles.curves(made) == [
        Curve("alpha", "m3po", {"m3po_alpha0": 0.0, "m3po": 0.5}),
        Curve("delta", "m3po", {"m3po": 0.1, "wide": 0.3}),
    ]
    assert recipe_roles.questions(made)[0] == Question("Does the confidence term help?", "m3po", "m3po_alpha0")


def test_without_the_term_delta_has_no_say():
    made = study(m3po_alpha0=like_m3po(alpha=0, delta=0.3))
    assert recipe_roles.ablated(made) == "m3po_alpha0"
    assert recipe_roles.ablated(study(m3po_alpha0=like_m3po(alpha=0.1))) is None


def test_of_equal_recipes_one_is_asked_about(monkeypatch):
    """m3po where it is among them, whatever stands first."""
    made = study(twin=like_m3po(alpha=0, delta=0.3), wide=like_m3po(delta=0.3), again=like_m3po())
    alike = {"twin": "m3po_alpha0", "m3po": "again"}
    monkeypatch.setattr(Study, "aliases", lambda study: alike)
    assert recipe_roles.curves(made) == [
        Curve("alpha", "m3po", {"m3po_alpha0": 0.0, "m3po": 0.5}),
        Curve("delta", "m3po", {"m3po": 0.1, "wide": 0.3}),
    ]
    assert recipe_roles.ablated(made) == "m3po_alpha0"
