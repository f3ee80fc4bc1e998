"""What an adapter scored, for its card: its own figures and those of the leaderboard as it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3po_dagster.evaluation.benchmark import OFFICIAL, Benchmark
from m3po_dagster.evaluation.board import Column, columns_of
from m3po_dagster.evaluation.registry import benchmark
from m3po_dagster.export.made import ChosenAdapter, Made
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.study import BASE_RECIPE


@dataclass(frozen=True)
class Measure:
    """One metric of a benchmark: this adapter's row of the scores, what it is compared with, its recipe's row.

    The last two are None where the leaderboard isn't up to date; `base` is the base model's mean, or the fixed value
    that stands for it, where `fixed`.
    """

    column: Column
    kind: str
    own: dict[str, Any]
    base: float | None
    board: dict[str, Any] | None
    fixed: bool = False


@dataclass(frozen=True)
class Measured:
    """The headline metrics of an adapter, and what they were read from: its recipe's scores, and the leaderboard."""

    measures: Sequence[Measure]
    sources: tuple[Artifact, ...]


def measured(made: Made, chosen: ChosenAdapter) -> Measured:
    """What the study's benchmarks say of the adapter; nothing when they did not measure this one."""
    scores = made.part("benchmark_scores", chosen.head.key.partition) if chosen.head else None
    if scores is None:
        return Measured((), ())
    recipe, board = scores.key.partition, made.part("leaderboard")
    own = {
        (row["benchmark"], row["metric"]): row
        for row in scores.table().to_pylist()
        if row["rule"] == OFFICIAL and row["seed"] == chosen.seed
    }
    rows = {} if board is None else _by_metric(board)
    suite = {name: benchmark(settings) for name, settings in made.study.benchmarks.items()}
    measures = [
        Measure(
            column=column,
            kind=suite[column.benchmark].kind,
            own=own[column.benchmark, column.metric],
            base=_base(rows, column, suite[column.benchmark]),
            board=rows.get((recipe, column.benchmark, column.metric)),
            fixed=column.metric in suite[column.benchmark].against_base,
        )
        for column in columns_of(suite)
        if (column.benchmark, column.metric) in own
    ]
    return Measured(measures, tuple(item for item in (scores, board) if item is not None))


def _base(rows: Mapping[tuple[str, str, str], dict[str, Any]], column: Column, item: Benchmark) -> float | None:
    """What a figure is compared with."""
    row = rows.get((BASE_RECIPE, column.benchmark, column.metric))
    return row["mean"] if row else item.against_base.get(column.metric) if rows else None


def _by_metric(board: Artifact) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The leaderboard's rows against base, by recipe, benchmark and metric."""
    return {
        (row["recipe"], row["benchmark"], row["metric"]): row
        for row in board.table().to_pylist()
        if row["against"] == BASE_RECIPE
    }
