"""The sliders' page: a recipe at another alpha and delta, against its saved setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from pydantic import ValidationError

from m3po_dagster.inspector.candidate_texts import CandidateTexts
from m3po_dagster.inspector.catalogue import Catalogue
from m3po_dagster.inspector.changed import Changed, changed_prompts
from m3po_dagster.inspector.curves import Chart, chart
from m3po_dagster.inspector.fronts import Fronts, file_name
from m3po_dagster.inspector.kept import Kept
from m3po_dagster.inspector.query import QueryError
from m3po_dagster.inspector.reselect import Figures, figures, picks
from m3po_dagster.method.selection_settings import SelectionSettings

PAGE_SIZE = 20
LABELS = {
    "overlap": "share of pairs as saved",
    "active_penalty_share": "share of pairs with a penalty",
    "hard_negative_share": "share of pairs whose R_l is likelier",
    "longer_rejected_share": "share of pairs whose R_l is longer",
    "mean_mas_gap": "mean MAS gap",
    "mean_logp_gap": "mean confidence gap",
    "mean_length_difference": "mean tokens of R_w minus R_l",
}
"""The figures of a selection as the page names them."""

_KEPT_GRIDS = 128


@dataclass(frozen=True)
class Move:
    """What a point does to a recipe: figures at the saved setting and here, curves, and a page of changed prompts."""

    saved: SelectionSettings
    moved: SelectionSettings
    at_saved: Figures
    here: Figures
    charts: tuple[Chart, ...]
    changed: list[Changed]
    page: int
    pages: int


def point(catalogue: Catalogue, recipe: str, given: Mapping[str, str]) -> SelectionSettings:
    """The recipe's selection with the alpha and delta of a query; what is not given stays as saved.

    Raises QueryError for what is no number or out of bounds.
    """
    saved = catalogue.study.recipes[recipe].selection
    values = saved.model_dump()
    for name in ("alpha", "delta"):
        text = given.get(name, "").strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            raise QueryError(f"{name}: {text!r} is no number") from None
        if not isfinite(value):
            raise QueryError(f"{name}: {text!r} is no number")
        values[name] = value
    try:
        return SelectionSettings(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise QueryError(f"{problem['loc'][-1]}: {problem['msg']}") from None


def described(selection: SelectionSettings | None) -> str:
    """The rule's settings in a line: alpha and delta where it has them, and whatever else is not as by default."""
    if selection is None:
        return ""
    shown = []
    for name, value in selection.model_dump(exclude={"rule"}).items():
        if name in ("alpha", "delta") or value != SelectionSettings.model_fields[name].default:
            number = f"{value:g}" if isinstance(value, float) else value
            shown.append(f"{name} {number}" if value is not True else name)
    return ", ".join(shown)


def no_sliders(catalogue: Catalogue, recipe: str) -> str:
    """Why a recipe has no alpha and delta to move; empty when it has."""
    selection = catalogue.study.recipes[recipe].selection
    if selection is None:
        return f"Recipe {recipe} selects no pairs: it is the base model as it is."
    if selection.rule == "m3p":
        return ""
    reasons = {
        "flipped": "it turns the pairs of rule m3p around; move the recipe that it is a control of",
        "vanilla": "it draws its two answers at random",
        "random": "it draws its two answers at random",
        "margin_pairs": "it draws from all pairs that are far enough apart",
        "sweet_spot": "it takes the loser two standard deviations below the mean, without the confidence",
        "longest": "it prefers the longest answer to the shortest, whatever their scores",
        "every_answer": "it takes every scored answer and no loser",
        "reward_max_min": f"it takes the best and the worst by {selection.reward}, without the confidence",
        "best_only": "it takes the best answer and no loser",
    }
    why = reasons.get(selection.rule, "its rule does not use them")
    return f"Recipe {recipe} has no sliders: its rule is {selection.rule}, and {why}."


class Tuner:
    """Moves recipes; a recipe's grid is computed once for what it is made from, and texts that were shown are kept."""

    def __init__(self) -> None:
        self._grids: Kept[list[Figures]] = Kept(_KEPT_GRIDS)
        self._texts = CandidateTexts()

    def move(
        self, catalogue: Catalogue, recipe: str, fronts: Sequence[Fronts], moved: SelectionSettings, page: int
    ) -> Move:
        """The recipe at `moved`. `fronts` are those of the catalogue's scored shards, in order.

        Raises OSError or ValueError when the texts of the changed pairs can't be read.
        """
        saved = catalogue.study.recipes[recipe].selection
        before, after = picks(fronts, saved), picks(fronts, moved)
        here = figures(fronts, before, after, moved)
        pages = max(1, -(-here.changed // PAGE_SIZE))
        page = min(max(1, page), pages)
        return Move(
            saved=saved,
            moved=moved,
            at_saved=figures(fronts, before, before, saved),
            here=here,
            charts=self._charts(catalogue, recipe, fronts, before, moved, here),
            changed=changed_prompts(catalogue, self._texts, fronts, before, after, (page - 1) * PAGE_SIZE, PAGE_SIZE),
            page=page,
            pages=pages,
        )

    def prepare(self, catalogue: Catalogue, recipe: str, fronts: Sequence[Fronts]) -> None:
        """Computes the recipe's grid, so that the first move need not."""
        self._grid(catalogue, recipe, fronts, picks(fronts, catalogue.study.recipes[recipe].selection))

    def _grid(
        self, catalogue: Catalogue, recipe: str, fronts: Sequence[Fronts], before: Sequence[np.ndarray]
    ) -> list[Figures]:
        saved, sweep = catalogue.study.recipes[recipe].selection, catalogue.study.sweep
        made_from = tuple(file_name(shard, saved) for shard in catalogue.shards if shard.scored)

        def compute() -> list[Figures]:
            grid = [saved.model_copy(update={"alpha": a, "delta": d}) for d in sweep.delta for a in sweep.alpha]
            return [figures(fronts, before, picks(fronts, point), point) for point in grid]

        return self._grids.get((made_from, saved.model_dump_json(), sweep), compute)

    def _charts(self, catalogue, recipe, fronts, before, moved: SelectionSettings, here: Figures) -> tuple[Chart, ...]:
        grid = self._grid(catalogue, recipe, fronts, before)
        alphas, deltas = catalogue.study.sweep.alpha, catalogue.study.sweep.delta
        return tuple(
            chart(
                LABELS[name],
                alphas,
                {
                    delta: [getattr(item, name) for item in grid[row * len(alphas) : (row + 1) * len(alphas)]]
                    for row, delta in enumerate(deltas)
                },
                (moved.alpha, getattr(here, name)),
            )
            for name in LABELS
        )


def figure_rows(move: Move) -> list[tuple[str, bool, float | None, float | None]]:
    """Name, whether it is a share, value at the saved setting, value here."""
    return [
        (label, name == "overlap" or name.endswith("share"), getattr(move.at_saved, name), getattr(move.here, name))
        for name, label in LABELS.items()
    ]
