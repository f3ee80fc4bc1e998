"""Recipes made from one that is there: another setting, or a whole grid of alpha and delta (section 4.6).

Nothing is written here: what comes out goes into a study file by `study_edit.add_recipes`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from m3po_dagster.equal_recipes import effective, first_equals
from m3po_dagster.method.optimization.settings import PRESETS
from m3po_dagster.method.selection_settings import FIELDS_OF_RULE, RULES_WITH_LOSER_SCORE
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.study import MOST_RECIPES, Recipe, Study, TrainingSettings

SECTIONS = ("selection", "training")


@dataclass(frozen=True)
class Derived:
    """A recipe's settings as a study file has them; `left_out`: what it does not take over, each with the reason."""

    settings: dict[str, Any]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """A point of a grid and the settings of its recipe; `same_as` names the recipe it would equal, '' where none."""

    name: str
    settings: Mapping[str, Any]
    same_as: str


def derived(
    like: str,
    recipe: Recipe,
    changes: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
    description: str | None = None,
) -> Derived:
    """The recipe called `like` with other settings, {"selection.alpha": 0.75, "training.beta": 0.2}.

    Another rule keeps what it uses too; another kind of training what means the same there. Raises ValueError for a
    recipe that trains nothing, and for a key that is no setting of selection or training.
    """
    if not recipe.trains:
        raise ValueError(f"recipe {like!r} selects no pairs and trains nothing: name another one to start from")
    inherited = {
        "selection": {"rule": recipe.selection.rule, **_given(recipe.selection)},
        "training": {"kind": recipe.training.kind, **_given(recipe.training)},
    }
    lost = {f"selection.{key}": why for key, why in _lost_to_rule(inherited["selection"], changes).items()}
    lost |= {f"training.{key}": why for key, why in _lost_to_kind(inherited["training"], changes).items()}
    settings = {
        section: {key: value for key, value in inherited[section].items() if f"{section}.{key}" not in lost}
        for section in SECTIONS
    }
    for place, value in changes.items():
        section, *keys = place.split(".")
        if section not in SECTIONS or not keys or not all(keys):
            raise ValueError(f"{place!r} is no setting of a recipe: selection.NAME or training.NAME")
        _put(settings[section], keys, value, place)
    changed = ", ".join(f"{_short(place)} {_shown(value)}" for place, value in changes.items())
    about = description if description is not None else f"{like} with {changed}" if changed else f"{like} again"
    kept = tuple(recipe.seeds if seeds is None else seeds)
    return Derived(
        {"description": about, **settings, **({} if kept == (0,) else {"seeds": list(kept)})},
        {place: why for place, why in lost.items() if place not in changes},
    )


def grid(
    study: Study,
    like: str,
    alphas: Sequence[float] | None,
    deltas: Sequence[float] | None,
    seeds: Sequence[int] | None = None,
    prefix: str = "",
) -> list[Point]:
    """The recipe `like` at every alpha and delta, by alpha, then delta; where one is None it stays as it is.

    A point that comes to the same training as a recipe of the study, or as an earlier point, names it: with alpha = 0
    delta changes nothing. Raises ValueError for a recipe whose rule has no alpha, for a name that another recipe has,
    and where the study would have more recipes than Dagster can follow.
    """
    recipe = study.recipes[like]
    rule = recipe.selection.rule if recipe.selection else "none"
    if rule not in RULES_WITH_LOSER_SCORE:
        wanted = " or ".join(RULES_WITH_LOSER_SCORE)
        raise ValueError(f"recipe {like!r} has no alpha and delta: its rule is {rule}; name one of rule {wanted}")
    firsts = first_equals(study.recipes)
    known = {canonical_json(effective(study.recipes[name])): name for name in firsts.values()}
    points = []
    for alpha in [None] if alphas is None else dict.fromkeys(alphas):
        for delta in [None] if deltas is None else dict.fromkeys(deltas):
            at = {key: value for key, value in (("alpha", alpha), ("delta", delta)) if value is not None}
            name = "_".join([prefix or like, *(f"{key[0]}{_shown(value)}" for key, value in at.items())])
            settings = derived(like, recipe, {f"selection.{key}": value for key, value in at.items()}, seeds).settings
            key = canonical_json(effective(_valid(name, settings)))
            if key not in known and name in study.recipes:
                raise ValueError(f"recipe {name!r} is there already with other settings: give another prefix")
            points.append(Point(name, settings, known.get(key, "")))
            known.setdefault(key, name)
    new = sum(not point.same_as for point in points)
    if len(study.recipes) + new > MOST_RECIPES:
        raise ValueError(
            f"the study has {len(study.recipes)} recipes and the grid adds {new}: {len(study.recipes) + new} are more "
            f"than the {MOST_RECIPES} that Dagster follows through the leaderboard. Name fewer points, or put them "
            "into a study of their own"
        )
    return points


def _valid(name: str, settings: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        # What is wrong with the recipe as a whole has no place in it.
        where = ".".join(map(str, problem["loc"]))
        parts = (f"recipe {name!r}", where, problem["msg"].removeprefix("Value error, "))
        raise ValueError(": ".join(part for part in parts if part)) from None


def _given(settings: Any) -> dict[str, Any]:
    """What a study file says of them."""
    return settings.model_dump(mode="json", exclude_unset=True)


def _lost_to_rule(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, str]:
    """Each key that another rule does not take over, and why; none for an unknown rule, which the reader refuses."""
    rule = str(changes.get("selection.rule", given["rule"]))
    used = FIELDS_OF_RULE.get(rule, set(given)) | {"rule"}
    return {key: f"rule {rule} has no use for it" for key in given if key not in used}


def _lost_to_kind(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, str]:
    """Each key of training that another kind or preset does not take over, and why."""
    kinds = {kind.model_fields["kind"].default: kind.model_fields for kind in get_args(get_args(TrainingSettings)[0])}
    kind, preset = (str(changes.get(f"training.{key}")) for key in ("kind", "preset"))
    lost = {}
    if kind in kinds:
        before, after = kinds[given["kind"]], kinds[kind]
        lost = {key: f"kind {kind} has no use for it" for key in given if key not in after}
        differs = [key for key in given if key in after and key != "kind" and _meant(before[key]) != _meant(after[key])]
        lost |= dict.fromkeys(differs, f"to kind {kind} it is another setting with a default of its own")
    filled = PRESETS.get(preset, {})
    return lost | {key: f"preset {preset} fills it" for key in given if key in filled}


def _meant(field: FieldInfo) -> tuple[str | None, Any]:
    """What kinds that mean the same by a setting have in common."""
    return field.description, field.get_default(call_default_factory=True)


def _put(settings: dict[str, Any], keys: Sequence[str], value: Any, place: str) -> None:
    for key in keys[:-1]:
        inner = settings.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{place!r} is no setting of a recipe: {key} has none inside")
        settings = inner
    settings[keys[-1]] = value


def _short(place: str) -> str:
    return place.removeprefix("selection.").removeprefix("training.")


def _shown(value: object) -> str:
    """A number in as few characters as tell it apart, none of which a partition key may not have."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    short = f"{value:g}"
    return (short if float(short) == value else repr(value)).replace("+", "")
