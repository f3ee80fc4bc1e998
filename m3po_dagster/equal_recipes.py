"""Which recipes come to the same training, whatever they are called: they are trained once and share its answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.selection_settings import RULES_WITH_LOSER_SCORE
from m3po_dagster.storage.fingerprint import canonical_json

if TYPE_CHECKING:
    from m3po_dagster.study import Recipe

OF_THE_PENALTY = ("delta", "allow_bonus")
"""What equation 2 multiplies by alpha."""


def effective(recipe: "Recipe") -> dict[str, Any]:
    """A recipe's selection and training without what changes nothing in them: name, description, seeds.

    Of the training what only says how fast is no part (`CHANGES_NO_WEIGHT`).
    With alpha = 0 equation 2 has no penalty, so delta and allow_bonus change no pair.
    """
    selection, training = recipe.selection, recipe.training
    settings = recipe.model_dump(mode="json", include={"selection"})
    settings["training"] = None if training is None else training.identity()
    if selection is not None and selection.rule in RULES_WITH_LOSER_SCORE and selection.alpha == 0:
        settings["selection"] = {k: v for k, v in settings["selection"].items() if k not in OF_THE_PENALTY}
    return settings


def first_equals(recipes: Mapping[str, "Recipe"]) -> dict[str, str]:
    """{name: the first recipe, in order, of the same effective settings}; itself where there is no earlier one."""
    owners: dict[str, str] = {}
    return {name: owners.setdefault(canonical_json(effective(recipe)), name) for name, recipe in recipes.items()}


def trained_once(recipes: Mapping[str, "Recipe"]) -> dict[str, "Recipe"]:
    """The distinct recipes that train, by the first name of each, with the seeds that any of its names asks for."""
    seeds: dict[str, dict[int, None]] = {}
    for name, first in first_equals(recipes).items():
        if recipes[name].trains:
            seeds.setdefault(first, {}).update(dict.fromkeys(recipes[name].seeds))
    return {first: recipes[first].model_copy(update={"seeds": tuple(found)}) for first, found in seeds.items()}


def trainings(recipes: Mapping[str, "Recipe"]) -> set[tuple[str, int]]:
    """The distinct trainings that recipes ask for: the first recipe that comes to each, and the seed."""
    return {(name, seed) for name, recipe in trained_once(recipes).items() for seed in recipe.seeds}
