"""A leaderboard as people read it: which recipes and figures it shows, what it asks of them, and how a figure is said.

Markdown, words, plots and the page are all made from a Board, so that they can't disagree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark

MORE_DIGITS = 2
"""Decimals added at most, so that a small difference is not shown as none."""


@dataclass(frozen=True)
class Column:
    """A figure that is shown: `better` is 1 where more is better, -1 where less is, 0 where neither."""

    benchmark: str
    metric: str
    label: str
    better: int
    digits: int

    @property
    def name(self) -> str:
        """The label without its arrow, for a sentence."""
        return self.label.rstrip(" ↑↓")


@dataclass(frozen=True)
class Question:
    """Something the table is to answer: whether recipe `ours` is better than `theirs`, as `text` puts it."""

    text: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Curve:
    """Recipes that differ from `like` in one setting alone: `values` has each recipe's, rising."""

    setting: str
    like: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Board:
    """A LEADERBOARD table with what a study says of its recipes.

    `references` are the recipes that all are compared with, the base model first. `notes` are what a reader must know
    about the benchmarks. `ablation` are recipes to set beside each other, each without one part of the method.
    """

    study: str
    table: pa.Table
    columns: Sequence[Column]
    references: Sequence[str]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    questions: Sequence[Question] = ()
    curves: Sequence[Curve] = ()
    ablation: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def base(self) -> str:
        """The base model's recipe."""
        return self.references[0]

    @cached_property
    def recipes(self) -> list[str]:
        """In the table's order."""
        return list(dict.fromkeys(self.table.column("recipe").to_pylist()))

    @cached_property
    def same_as(self) -> dict[str, str]:
        """Recipe -> the equal one before it."""
        rows = self.table.select(["recipe", "same_as"]).to_pylist()
        return {row["recipe"]: row["same_as"] for row in rows if row["same_as"] is not None}

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str, str], dict[str, Any]]:
        keys = ("recipe", "benchmark", "metric", "against")
        return {tuple(row[key] for key in keys): row for row in self.table.to_pylist()}

    @cached_property
    def shown(self) -> list[Column]:
        """The columns of which there is anything."""
        return [column for column in self.columns if any(self.row(recipe, column) for recipe in self.recipes)]

    def row(self, recipe: str, column: Column, against: str | None = None) -> dict[str, Any] | None:
        """A recipe's row for a figure, compared with base unless another is named; None where it has no such figure."""
        return self._rows.get((recipe, column.benchmark, column.metric, against or self.base))

    def compared(self, recipe: str, column: Column, against: str) -> dict[str, Any] | None:
        """As `row`, but None too where there is no difference to speak of."""
        row = self.row(recipe, column, against)
        return row if row and row["difference"] is not None else None


def columns_of(benchmarks: Mapping[str, Benchmark]) -> list[Column]:
    """Every figure that the leaderboard shows, benchmark by benchmark."""
    return [
        Column(
            name,
            headline.metric,
            headline.label if name == item.kind else f"{name}: {headline.label}",
            headline.better,
            headline.digits,
        )
        for name, item in benchmarks.items()
        for headline in item.headlines
    ]


def mean_text(row: Mapping[str, Any], column: Column) -> str:
    """`77.5 ± 2.5`: mean and standard deviation over seeds."""
    spread = "" if row["seed_sd"] is None else f" ± {row['seed_sd']:.{column.digits}f}"
    return f"{row['mean']:.{column.digits}f}{spread}"


def difference_text(row: Mapping[str, Any], column: Column) -> str:
    """`+4.1 (3.2 to 5.0)`: a difference and its 95 % interval."""
    value, low, high = row["difference"], row["ci_low"], row["ci_high"]
    digits = digits_for((value, low, high), column.digits)
    return f"{signed(value, digits)} ({signed(low, digits)} to {signed(high, digits)})"


def signed(value: float, digits: int) -> str:
    """With its sign, a true minus; 0 has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def digits_for(values: Sequence[float], digits: int) -> int:
    """As many decimals, MORE_DIGITS more at most, as show that what is not 0 is not."""
    for more in range(MORE_DIGITS):
        if all(value == 0 or not math.isfinite(value) or round(value, digits + more) != 0 for value in values):
            return digits + more
    return digits + MORE_DIGITS


def mark(row: Mapping[str, Any] | None) -> str:
    """`**` for a difference that is significant, `*` for one that is so only before the correction, else nothing."""
    if not row or row["difference"] is None:
        return ""
    return "**" if row["significant_corrected"] else "*" if row["significant"] else ""
