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
from m3po_dagster.method.selection_reasons import REASONS, reasons_of
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_winners import Winners, confidence_penalty, find_winners


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
        _column("longer_rejected_share", pa.float64(), "share of the pairs whose R_l has more tokens than R_w"),
        _column("mean_mas_gap", pa.float64(), "mean of MAS(R_w) - MAS(R_l)"),
        _column("mean_logp_gap", pa.float64(), "mean confidence of R_w minus that of R_l, in the recipe's scale"),
        _column("mean_length_difference", pa.float64(), "mean tokens of R_w minus tokens of R_l"),
        _column("top_tie_share", pa.float64(), "share of the prompts where several candidates share the best MAS"),
        _column("no_pair_share", pa.float64(), "share of the prompts without a pair"),
    ]
)
OVERLAP_SCHEMA = pa.schema(
    [
        _column("alpha", pa.float64(), "weight of the confidence penalty at one grid point", nullable=False),
        _column("delta", pa.float64(), "margin of the confidence penalty there", nullable=False),
        _column("alpha_other", pa.float64(), "weight of the confidence penalty at the other", nullable=False),
        _column("delta_other", pa.float64(), "margin of the confidence penalty there", nullable=False),
        _column("overlap", pa.float64(), "share of the prompts with a pair that have the same one at both"),
    ]
)
NO_PAIR_SCHEMA = pa.schema(
    [
        _column("reason", pa.string(), "why a prompt has no pair at any point of the grid", nullable=False),
        _column("n_prompts", pa.int64(), "prompts with this reason", nullable=False),
        _column("share", pa.float64(), "their share of all prompts", nullable=False),
    ]
)


@dataclass(frozen=True)
class SweepResult:
    """What a grid would select.

    points: a row a grid point, alphas outermost (SWEEP_SCHEMA). overlap: a row an ordered pair of grid points, each
    with itself too (OVERLAP_SCHEMA). no_pair: a row a reason that occurs (NO_PAIR_SCHEMA); which prompts have a pair
    does not depend on alpha or delta.
    """

    points: pa.Table
    overlap: pa.Table
    no_pair: pa.Table


def sweep(
    tables: pa.Table | Iterable[pa.Table],
    alphas: Sequence[float],
    deltas: Sequence[float],
    settings: SelectionSettings | None = None,
) -> SweepResult:
    """Every point of the grid, and every two of them against each other.

    `tables` is a table as `select_pairs` takes it, or several, read one after the other (shards; all candidates of a
    prompt in one of them); candidate_id is needed for noise alone. The settings give all but alpha and delta; their own
    alpha and delta are the point that `overlap` of a grid point compares with. alpha = 0 is one point at every delta.
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
        for block in ScoreMatrix.from_table(table, settings).blocks():
            state.add(block)
        del table, block  # or the next shard would be read beside this one
    return state.result()


@dataclass(frozen=True)
class Front:
    """The losers of Q prompts that some alpha and delta may pick, as (Q, F) arrays in the order of confidence."""

    gap: np.ndarray  # -inf after a prompt's last
    logp_gap: np.ndarray  # conf(R_w) - conf(R_j)
    length_difference: np.ndarray  # tokens of R_w minus tokens of R_j
    column: np.ndarray  # the block's column of R_j; -1 after a prompt's last
    winner: np.ndarray  # (Q,) the block's column of R_w


def find_front(block: Block, settings: SelectionSettings) -> tuple[Front, np.ndarray, Winners]:
    """The front of each prompt that has an eligible loser; which prompts have one; every prompt's R_w and losers."""
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
    return front, paired, winners


def pick_points(front: Front, points: Sequence[SelectionSettings]) -> list[np.ndarray]:
    """(Q,) the place of R_l in each front, a grid point; points that can't differ share one array."""
    penalties: dict[float, np.ndarray] = {}
    found: dict[tuple[float, float | None], np.ndarray] = {}
    picks = []
    for point in points:
        # With alpha = 0, delta plays no part.
        key = (point.alpha, point.delta if point.alpha else None)
        if key not in found:
            if point.delta not in penalties:
                penalties[point.delta] = confidence_penalty(front.logp_gap, point)
            found[key] = (front.gap - point.alpha * penalties[point.delta]).argmax(axis=1)
        picks.append(found[key])
    return picks


class _Sweep:
    """Running sums over blocks: one row a grid point, the last row for the settings' own alpha and delta."""

    def __init__(self, grid: list[SelectionSettings], default: SelectionSettings) -> None:
        self.grid = grid
        self.points = [*grid, default]
        self.prompts = self.pairs = self.ties = 0
        self.reasons = np.zeros(len(REASONS), dtype=np.int64)
        self.penalised, self.harder, self.longer = (np.zeros(len(grid), dtype=np.int64) for _ in range(3))
        self.mas_gap, self.logp_gap, self.length = (np.zeros(len(grid)) for _ in range(3))
        self.same = np.zeros((len(grid) + 1, len(grid) + 1), dtype=np.int64)

    def add(self, block: Block) -> None:
        default = self.points[-1]
        front, paired, winners = find_front(block, default)
        self.prompts += len(block.value)
        self.pairs += len(paired)
        self.ties += int(np.count_nonzero(winners.tied))
        if len(paired) < len(block.value):
            without = np.setdiff1d(np.arange(len(block.value)), paired)
            codes = reasons_of(block, winners, without, default)
            self.reasons += np.bincount(codes, minlength=len(REASONS))
        if not len(paired):
            return
        picks = pick_points(front, self.points)
        self._count_same(picks, front.gap.shape[1])
        base = np.arange(len(paired)) * front.gap.shape[1]
        for index, (point, places) in enumerate(zip(self.grid, picks, strict=False)):
            pick = base + places
            logp_gap, length_difference = front.logp_gap.take(pick), front.length_difference.take(pick)
            self.penalised[index] += np.count_nonzero(logp_gap - point.delta > 0) if point.alpha else 0
            self.harder[index] += np.count_nonzero(logp_gap < 0)
            self.longer[index] += np.count_nonzero(length_difference < 0)
            self.mas_gap[index] += front.gap.take(pick).sum()
            self.logp_gap[index] += logp_gap.sum()
            self.length[index] += length_difference.sum()

    def _count_same(self, picks: list[np.ndarray], places: int) -> None:
        """Adds to `same` in how many prompts each two points pick the same loser; places in a byte compare fastest."""
        small = np.uint8 if places <= 1 << 8 else np.uint32
        rows = [pick.astype(small) for pick in picks]
        for one in range(len(rows)):
            for other in range(one + 1):
                equal = len(rows[one]) if picks[one] is picks[other] else np.count_nonzero(rows[one] == rows[other])
                self.same[one, other] += equal

    def result(self) -> SweepResult:
        size = len(self.grid)
        same = np.maximum(self.same, self.same.T)

        def per_pair(total: np.ndarray) -> list[float | None]:
            return [float(value) / self.pairs if self.pairs else None for value in total]

        def per_prompt(count: int) -> float | None:
            return count / self.prompts if self.prompts else None

        alphas, deltas = [point.alpha for point in self.grid], [point.delta for point in self.grid]
        alike = [np.flatnonzero(same[index, :index] == self.pairs) for index in range(size)]
        points = pa.table(
            [
                alphas,
                deltas,
                [self.pairs] * size,
                [self.prompts - self.pairs] * size,
                [int(earlier[0]) if len(earlier) else None for earlier in alike],
                per_pair(same[:size, size]),
                per_pair(self.penalised),
                per_pair(self.harder),
                per_pair(self.longer),
                per_pair(self.mas_gap),
                per_pair(self.logp_gap),
                per_pair(self.length),
                [per_prompt(self.ties)] * size,
                [per_prompt(self.prompts - self.pairs)] * size,
            ],
            schema=SWEEP_SCHEMA,
        )
        columns = [np.repeat(alphas, size), np.repeat(deltas, size), np.tile(alphas, size), np.tile(deltas, size)]
        overlap = pa.table([*columns, pa.array(per_pair(same[:size, :size].ravel()), pa.float64())], OVERLAP_SCHEMA)
        found = {REASONS[code]: int(self.reasons[code]) for code in np.flatnonzero(self.reasons)}
        shares = [per_prompt(count) for count in found.values()]
        return SweepResult(points, overlap, pa.table([list(found), list(found.values()), shares], NO_PAIR_SCHEMA))
