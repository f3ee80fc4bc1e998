"""The leaderboard's tables as text, cell by cell: what Markdown and the page both show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from m3po_dagster.evaluation.board import Board, Column, Curve, difference_text, mark, mean_text

DASH = "–"


@dataclass(frozen=True)
class Grid:
    """Heads and lines of a table; the first `left` columns are names, the others figures."""

    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: int = 1


def means_grid(board: Board, recipes: Sequence[str]) -> Grid:
    """The mean of every figure that is shown with its spread over seeds and its mark against base, a line a recipe."""
    lines = [
        (f"{recipe} (same as {board.same_as[recipe]})" if recipe in board.same_as else recipe, *_means(board, recipe))
        for recipe in recipes
    ]
    return Grid(("recipe", *_labels(board)), lines)


def differences_grid(board: Board, against: str) -> Grid:
    """Every recipe's difference to one with its interval and mark."""
    lines = [
        (recipe, *(_difference(board, recipe, column, against) for column in board.shown))
        for recipe in board.recipes
        if recipe != against and recipe not in board.same_as
    ]
    return Grid(("recipe", *_labels(board)), lines)


def curve_grid(board: Board, curve: Curve) -> Grid:
    """The means over the values of a setting."""
    lines = [(f"{value:g}", recipe, *_means(board, recipe)) for recipe, value in curve.values.items()]
    return Grid((curve.setting, "recipe", *_labels(board)), lines, left=2)


def every_row(board: Board) -> Grid:
    """The whole table, every metric of every benchmark."""
    heads = ("recipe", "benchmark", "metric", "against", "mean", "seed sd", "seeds", "difference", "95 % interval")
    lines = [
        (
            *(row[name] for name in ("recipe", "benchmark", "metric", "against")),
            _number(row["mean"]),
            _number(row["seed_sd"]),
            str(row["n_seeds"]),
            _number(row["difference"]),
            DASH if row["difference"] is None else f"{_number(row['ci_low'])} to {_number(row['ci_high'])}",
            row["interval_over"] or DASH,
            _number(row["p_value"]),
            _number(row["p_corrected"]),
            mark(row),
        )
        for row in board.table.to_pylist()
    ]
    return Grid((*heads, "over", "p", "p corrected", "significant"), lines, left=4)


def _labels(board: Board) -> Iterator[str]:
    return (column.label for column in board.shown)


def _means(board: Board, recipe: str) -> Iterator[str]:
    for column in board.shown:
        row = board.row(recipe, column)
        yield DASH if row is None else " ".join(filter(None, (mean_text(row, column), mark(row))))


def _difference(board: Board, recipe: str, column: Column, against: str) -> str:
    row = board.compared(recipe, column, against)
    return DASH if row is None else " ".join(filter(None, (difference_text(row, column), mark(row))))


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"
