"""A study's recipes as a table, and what more of them will take to train."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from m3po_dagster.equal_recipes import trainings
from m3po_dagster.lineage.profile import flattened
from m3po_dagster.study import Recipe, Study

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("recipe", "rule", "alpha", "delta", "training", "seeds", "same as")


@dataclass(frozen=True)
class Cost:
    """Distinct trainings of a kind that are new, and what they will take by those of the store (None: it has none)."""

    kind: str
    adapters: int
    seconds: float | None
    trainings_in_store: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def words(self) -> str:
        """One line."""
        line = f"to train: {self.adapters} adapter{'' if self.adapters == 1 else 's'} by {self.kind}"
        if self.seconds is None:
            return f"{line}; the store has none of that kind to tell the time by"
        each = self.seconds / self.adapters
        return (
            f"{line}, about {_duration(self.seconds)} with their answers: {self.adapters} x {_duration(each)}, "
            f"the median of {self.trainings_in_store} in the store"
        )


def recipe_rows(study: Study) -> list[dict[str, Any]]:
    """A row a recipe, with the columns COLUMNS; what a recipe does not have is None."""
    aliases = study.aliases()
    return [
        {
            "recipe": name,
            "rule": _rule(recipe),
            "alpha": _figure(recipe, "alpha"),
            "delta": _figure(recipe, "delta"),
            "training": _training(recipe),
            "seeds": list(recipe.seeds) if recipe.trains else [],
            "same as": aliases.get(name),
        }
        for name, recipe in study.recipes.items()
    ]


def recipe_table(rows: list[dict[str, Any]]) -> "Table":
    """The rows for a terminal."""
    from rich.table import Table

    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in COLUMNS))
    return table


def trainings_line(study: Study) -> str:
    """How many adapters the study trains, and how many it would without sharing."""
    distinct = len(trainings(study.recipes))
    asked = sum(len(recipe.seeds) for recipe in study.recipes.values() if recipe.trains)
    shared = f" for the {asked} they ask for: equal ones are shared" if asked > distinct else ""
    return f"{len(study.recipes)} recipes, {distinct} adapters to train{shared}"


def cost(before: Study, after: Study, store_folder: str) -> list[Cost]:
    """What the trainings of `after` that `before` has not will take, by kind of training."""
    from m3po_dagster.storage.store import ArtifactStore
    from m3po_dagster.training_times import training_times

    new = trainings(after.recipes) - trainings(before.recipes)
    by_kind = Counter(after.recipes[name].training.kind for name, _ in new)
    store = ArtifactStore(store_folder)
    found = []
    for kind, number in sorted(by_kind.items()):
        times = training_times(store, kind)
        seconds = times.seconds * number if times else None
        found.append(Cost(kind, number, seconds, times.trainings if times else 0))
    return found


def _rule(recipe: Recipe) -> str | None:
    """The rule with those of its settings that have no column and are not at their default."""
    if recipe.selection is None:
        return None
    given = recipe.selection.model_dump(mode="json", exclude_defaults=True)
    return _with(recipe.selection.rule, {k: v for k, v in given.items() if k not in ("rule", "alpha", "delta")})


def _figure(recipe: Recipe, name: str) -> float | None:
    """A setting of the rule; None where the rule does not use it."""
    return recipe.selection.model_dump().get(name) if recipe.selection else None


def _training(recipe: Recipe) -> str | None:
    if recipe.training is None:
        return None
    given = recipe.training.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return _with(recipe.training.kind, given)


def _with(name: str, settings: dict[str, Any]) -> str:
    return ", ".join([name, *(f"{key} {_cell(value)}" for key, value in flattened(settings) if key)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
