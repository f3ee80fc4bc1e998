"""Recipes made from one that is there: another setting, or a whole grid of alpha and delta (section 4.6).

Nothing is written here: what comes out goes into a study file by `study_edit.add_recipes`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from m3po_dagster.equal_recipes import effective, first_equals
from m3po_dagster.method.optimization.settings import PRESETS
from m3po_dagster.method.selection_settings import FIELDS_OF_RULE, RULES_WITH_LOSER_SCORE
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.study import MOST_RECIPES, Recipe, Study, TrainingSettings

SECTIONS = ("selection", "training")


@dataclass(frozen=True)
class Derived:
    """A recipe's settings as a study file has them; `left_out` are those of the model recipe that it has no use for."""

    settings: dict[str, Any]
    left_out: tuple[str, ...] = ()


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

    Another rule or another kind of training keeps what it uses too. Raises ValueError for a recipe that trains nothing,
    and for a key that is no setting of selection or training.
    """
    if not recipe.trains:
        raise ValueError(f"recipe {like!r} selects no pairs and trains nothing: name another one to start from")
    inherited = {
        "selection": {"rule": recipe.selection.rule, **_given(recipe.selection)},
        "training": {"kind": recipe.training.kind, **_given(recipe.training)},
    }
    used = {
        "selection": _used(FIELDS_OF_RULE, changes.get("selection.rule", recipe.selection.rule)) | {"rule"},
        "training": _used(_fields_by_kind(), changes.get("training.kind", recipe.training.kind)),
    }
    if "training.preset" in changes:
        # What was given goes before what a preset fills.
        used["training"] -= set(PRESETS.get(str(changes["training.preset"]), ()))
    left_out = [f"{section}.{key}" for section in SECTIONS for key in inherited[section] if key not in used[section]]
    settings = {
        section: {key: value for key, value in inherited[section].items() if key in used[section]}
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
        {"description": about, **settings, **({} if kept == (0,) else {"seeds": list(kept)})}, tuple(left_out)
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
        where = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"recipe {name!r}: {where}: {problem['msg']}") from None


def _given(settings: Any) -> dict[str, Any]:
    """What a study file says of them."""
    return settings.model_dump(mode="json", exclude_unset=True)


def _fields_by_kind() -> dict[str, set[str]]:
    kinds = get_args(get_args(TrainingSettings)[0])
    return {kind.model_fields["kind"].default: set(kind.model_fields) for kind in kinds}


def _used(fields: Mapping[str, set[str]], which: object) -> set[str]:
    """The fields of a rule or kind; those of all for an unknown one, which the study file's reader refuses by name."""
    return set(fields.get(str(which), set().union(*fields.values())))


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
