"""What a study's recipes are to each other, read from their settings: the paper's rivals, its ablation, its curves.

A recipe is known by what it does, not by its name; but for `base` and `m3po`, which the others are compared with.
"""

from m3po_dagster.evaluation.board import Curve, Question
from m3po_dagster.study import BASE_RECIPE, Recipe, Study

M3PO_RECIPE = "m3po"
CONTROLS = ("random", "flipped", "longest")
"""Rules that must not win."""
RIVALS = {"vanilla": "vanilla DPO", "reward_max_min": "RM-DPO"}
TRAINED_OTHERWISE = {"sft": "SFT on the best answers", "rlhf": "simulated RLHF"}


def references(study: Study) -> tuple[str, ...]:
    """The recipes that all are compared with, base first."""
    wanted = study.leaderboard.compare_with
    if wanted is None:
        wanted = (M3PO_RECIPE,) if M3PO_RECIPE in study.recipes else ()
    return tuple(dict.fromkeys((BASE_RECIPE, *wanted)))


def _apart(study: Study) -> set[str]:
    """The recipes that another name stands for: of equal ones m3po where it is among them, else the first."""
    alike = study.aliases()
    method = alike.get(M3PO_RECIPE)
    return ({*alike} | ({method} if method else set())) - {M3PO_RECIPE}


def ablated(study: Study) -> str | None:
    """The recipe that is m3po without its confidence term (alpha = 0, the paper's Table 3)."""
    method = _method(study)
    if method is None or method.selection.alpha == 0:
        return None
    apart = _apart(study)
    found = (name for name in study.recipes if name not in apart and _alpha_alone(study.recipes[name], method))
    return next((name for name in found if study.recipes[name].selection.alpha == 0), None)


def questions(study: Study) -> list[Question]:
    """What the paper claims, as far as the study has recipes for it; and that the controls must not win."""
    if _method(study) is None:
        return []
    asked, apart = [], _apart(study)
    if twin := ablated(study):
        asked.append(Question("Does the confidence term help?", M3PO_RECIPE, twin))
    others = {name: recipe for name, recipe in study.recipes.items() if recipe.trains and name not in apart}
    for name, recipe in others.items():
        rule, kind = recipe.selection.rule, recipe.training.kind
        rival = TRAINED_OTHERWISE.get(kind) or RIVALS.get(rule)
        if rival and rule not in CONTROLS:
            asked.append(Question(f"Does M3PO beat {rival}?", M3PO_RECIPE, name))
    for name, recipe in others.items():
        if recipe.selection.rule in CONTROLS:
            asked.append(Question(f"Does the control {name} lose to M3PO?", M3PO_RECIPE, name))
            asked.append(
                Question(f"Does the control {name} win over the base model, as it must not?", name, BASE_RECIPE)
            )
    return asked


def curves(study: Study) -> list[Curve]:
    """The recipes that differ from m3po in alpha alone, and those that do in delta (the paper's Tables 5 and 6)."""
    method = _method(study)
    if method is None:
        return []
    found, apart = [], _apart(study)
    for setting, alike in (("alpha", _alpha_alone), ("delta", _delta_alone)):
        values = {
            name: getattr(recipe.selection, setting)
            for name, recipe in study.recipes.items()
            if name not in apart and alike(recipe, method)
        }
        if len(set(values.values())) > 1:
            found.append(Curve(setting, M3PO_RECIPE, dict(sorted(values.items(), key=lambda item: item[1]))))
    return found


def _method(study: Study) -> Recipe | None:
    """The recipe m3po, where it is one."""
    recipe = study.recipes.get(M3PO_RECIPE)
    return recipe if recipe and recipe.trains and recipe.selection.rule == "m3p" else None


def _trained_alike(recipe: Recipe, method: Recipe) -> bool:
    """Whether the trainings come to the same, whether a preset filled their settings or they were spelled out."""
    return recipe.trains and recipe.training.model_dump() == method.training.model_dump()


def _alpha_alone(recipe: Recipe, method: Recipe) -> bool:
    """Whether a recipe is the method with another alpha, or its own; without the term delta has no say."""
    if not _trained_alike(recipe, method):
        return False
    same = {"alpha": method.selection.alpha}
    if recipe.selection.alpha == 0:
        same["delta"] = method.selection.delta
    return recipe.selection.model_copy(update=same) == method.selection


def _delta_alone(recipe: Recipe, method: Recipe) -> bool:
    """Whether a recipe is the method with another delta, or its own."""
    if not _trained_alike(recipe, method):
        return False
    return recipe.selection.model_copy(update={"delta": method.selection.delta}) == method.selection
