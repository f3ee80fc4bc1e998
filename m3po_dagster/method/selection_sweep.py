"""Every point of an alpha x delta grid in one pass over the scores (section 4.7's sensitivity, tables 5 and 6).

R_w and the eligible losers don't depend on alpha or delta, so a prompt is looked at once. Of its losers only few can
ever be R_l: S falls with the score and rises with the confidence, so a loser that is no worse an answer and no likelier
than another is never first, ties included. Only this front (ordered by confidence, of rising gap) is scored at every
grid point; the result is that of `select_pairs`, pair by pair.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import pyarrow as pa

from m3po_dagster.method.selection_matrix import Block, ScoreMatrix
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_winners import confidence_penalty, find_winners


def _column(name: str, kind: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


SWEEP_SCHEMA = pa.schema(
    [
        _column("alpha", pa.float64(), "weight of the confidence penalty", nullable=False),
        _column("delta", pa.float64(), "margin of the confidence penalty in nats", nullable=False),
        _column("n_pairs", pa.int64(), "prompts with a pair", nullable=False),
        _column("n_no_pair", pa.int64(), "prompts without a pair", nullable=False),
        _column("identical_to", pa.int64(), "first grid point with the very same pairs, from 0; null: none"),
        _column("overlap", pa.float64(), "share of the pairs that are those of the default alpha and delta"),
        _column("active_penalty_share", pa.float64(), "share of the pairs whose R_l is penalised"),
        _column("hard_negative_share", pa.float64(), "share of the pairs whose R_l is likelier than R_w"),
        _column("mean_mas_gap", pa.float64(), "mean of MAS(R_w) - MAS(R_l)"),
        _column("mean_logp_gap", pa.float64(), "mean confidence of R_w minus that of R_l, in the recipe's scale"),
        _column("mean_length_difference", pa.float64(), "mean tokens of R_w minus tokens of R_l"),
        _column("top_tie_share", pa.float64(), "share of the prompts where several candidates share the best MAS"),
    ]
)


def sweep(
    tables: pa.Table | Iterable[pa.Table],
    alphas: Sequence[float],
    deltas: Sequence[float],
    settings: SelectionSettings | None = None,
) -> pa.Table:
    """One row a grid point, alphas outermost (SWEEP_SCHEMA).

    `tables` is a table as `select_pairs` takes it, or several, read one after the other (shards; all candidates of a
    prompt in one of them); candidate_id is not needed. The settings give all but alpha and delta; their own alpha and
    delta are the point that `overlap` compares with. alpha = 0 is one and the same point at every delta.
    Raises ValueError for a rule other than m3p or a negative or non-finite grid value, ScoreTableError for a bad table.
    """
    settings = SelectionSettings() if settings is None else settings
    if settings.rule != "m3p":
        raise ValueError(f"rule {settings.rule} has no alpha and delta to sweep: use m3p")
    for name, values in (("alpha", alphas), ("delta", deltas)):
        for value in values:
            if not (isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value} in the grid: it must be finite and at least 0")
    grid = [settings.model_copy(update={"alpha": float(a), "delta": float(d)}) for a in alphas for d in deltas]
    state = _Sweep(grid, settings)
    for table in [tables] if isinstance(tables, pa.Table) else tables:
        matrix = ScoreMatrix.from_table(table)
        for block in matrix.blocks():
            state.add(block)
    return state.result()


@dataclass(frozen=True)
class Front:
    """The losers of B prompts that some alpha and delta may pick, as (B, F) arrays in the order of confidence."""

    gap: np.ndarray  # -inf after a prompt's last
    logp_gap: np.ndarray  # conf(R_w) - conf(R_j)
    length_difference: np.ndarray  # tokens of R_w minus tokens of R_j
    column: np.ndarray  # the block's column of R_j; -1 after a prompt's last
    winner: np.ndarray  # (B,) the block's column of R_w


def find_front(block: Block, settings: SelectionSettings) -> tuple[Front, np.ndarray, np.ndarray]:
    """The front of each prompt that has an eligible loser; which prompts have one, and which tie at the top."""
    winners = find_winners(block, settings)
    confidence = block.confidence(settings.confidence)
    order = np.argsort(-confidence, axis=1)
    ascending = np.sort(confidence, axis=1)
    equal = (ascending[:, 1:] == ascending[:, :-1]).any(axis=1)
    if equal.any():
        order[equal] = np.lexsort((block.n_tokens[equal], -confidence[equal]), axis=1)
    gap = np.take_along_axis(np.where(winners.losers, winners.gap, -np.inf), order, axis=1)
    on_front = np.empty(gap.shape, dtype=bool)
    best = np.full(len(gap), -np.inf)
    for column in range(gap.shape[1]):  # several times faster than maximum.accumulate along rows
        np.greater(gap[:, column], best, out=on_front[:, column])
        np.maximum(gap[:, column], best, out=best)
    size = np.count_nonzero(on_front, axis=1)
    paired = np.flatnonzero(size)
    size, row, column = size[paired], *np.nonzero(on_front[paired])
    place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    shape = len(paired), int(size.max(initial=1))
    source = paired[row], order[paired[row], column]
    winner = paired, winners.column[paired]

    def packed(values: np.ndarray, padding: float) -> np.ndarray:
        array = np.full(shape, padding, dtype=values.dtype)
        array[row, place] = values
        return array

    front = Front(
        gap=packed(winners.gap[source], -np.inf),
        logp_gap=packed(confidence[winner][row] - confidence[source], 0.0),
        length_difference=packed(block.n_tokens[winner][row] - block.n_tokens[source], 0.0),
        column=packed(source[1], -1),
        winner=winner[1],
    )
    return front, paired, winners.tied


class _Sweep:
    """Running sums over blocks: one row a grid point, the last row for the settings' own alpha and delta."""

    def __init__(self, grid: list[SelectionSettings], default: SelectionSettings) -> None:
        self.grid = grid
        self.points = [*grid, default]
        self.prompts = self.pairs = self.ties = 0
        self.overlap, self.penalised, self.harder = (np.zeros(len(grid), dtype=np.int64) for _ in range(3))
        self.mas_gap, self.logp_gap, self.length = (np.zeros(len(grid)) for _ in range(3))
        # Pairs of points not yet seen to differ; most part ways in the first block.
        self.alike = {(late, early) for late in range(len(grid)) for early in range(late)}

    def add(self, block: Block) -> None:
        front, paired, tied = find_front(block, self.points[-1])
        self.prompts += len(block.value)
        self.pairs += len(paired)
        self.ties += int(np.count_nonzero(tied))
        if not len(paired):
            return
        base = np.arange(len(paired)) * front.gap.shape[1]
        penalties, first_with, picks = {}, {}, []
        for point in self.points:
            if point.delta not in penalties:
                penalties[point.delta] = confidence_penalty(front.logp_gap, point)
            # With alpha = 0, delta plays no part.
            key = (point.alpha, point.delta if point.alpha else None)
            if key not in first_with:
                score = front.gap - point.alpha * penalties[point.delta]
                first_with[key] = base + score.argmax(axis=1)
            picks.append(first_with[key])
        self.alike = {(a, b) for a, b in self.alike if picks[a] is picks[b] or np.array_equal(picks[a], picks[b])}
        for index, (point, pick) in enumerate(zip(self.grid, picks, strict=False)):
            logp_gap = front.logp_gap.take(pick)
            self.overlap[index] += np.count_nonzero(pick == picks[-1])
            self.penalised[index] += np.count_nonzero(logp_gap - point.delta > 0) if point.alpha else 0
            self.harder[index] += np.count_nonzero(logp_gap < 0)
            self.mas_gap[index] += front.gap.take(pick).sum()
            self.logp_gap[index] += logp_gap.sum()
            self.length[index] += front.length_difference.take(pick).sum()

    def result(self) -> pa.Table:
        size = len(self.grid)

        def per_pair(total: np.ndarray) -> list[float | None]:
            return [float(value) / self.pairs if self.pairs else None for value in total]

        first_alike = [min((b for a, b in self.alike if a == index), default=None) for index in range(size)]
        return pa.table(
            [
                [point.alpha for point in self.grid],
                [point.delta for point in self.grid],
                [self.pairs] * size,
                [self.prompts - self.pairs] * size,
                first_alike,
                per_pair(self.overlap),
                per_pair(self.penalised),
                per_pair(self.harder),
                per_pair(self.mas_gap),
                per_pair(self.logp_gap),
                per_pair(self.length),
                [self.ties / self.prompts if self.prompts else None] * size,
            ],
            schema=SWEEP_SCHEMA,
        )
