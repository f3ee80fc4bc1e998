"""Two recipes on one benchmark: their difference, how sure it is over test images and training seeds, and its p-value.

    both = sampled(benchmark.metrics, {"m3po": tables_of_its_seeds, "base": [table]}, untrained=("base",))
    difference(both["m3po"], both["base"], "accuracy")

A difference varies for two reasons. Other test images would give another one: both sides are weighted by the same
resampled images, so that what is hard for everybody cancels out. Another training seed would give another one, too:
from three seeds on, each resample also moves the difference by what the mean over so few seeds may be off.

That move is a draw from Student's t, scaled by the seeds' standard error, with Welch's degrees of freedom for two
recipes of unlike spread. Drawing seeds with replacement, the usual hierarchical bootstrap, is too sure of three of
them: where seeds decide, its 95 % intervals hold the truth 88 times of 100 (benchmarks/intervals.py).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from m3po_dagster.evaluation.intervals import (
    Clusters,
    Metrics,
    check_same_questions,
    percentile_interval,
    resample_weights,
)

RESAMPLES = 10_000
"""Enough for a p-value that survives the correction over as many recipes as a study may have."""

AT_ONCE = 1_000
"""Resamples whose image weights are in memory at the same time."""

ENOUGH_SEEDS = 3
"""Fewer say nothing usable about how seeds scatter."""

IMAGES = "images"
ONE_SIDE = "images and the seeds of one side"
SEEDS_AND_IMAGES = "seeds and images"
"""What an interval covers."""

# Equal answers give equal metrics but for float arithmetic.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Sampled:
    """A recipe's metrics on one benchmark, on the data and in every resample of the images.

    `values[metric]` is (seeds,); `resampled[metric]`, the mean over the seeds, (resamples,). `trained` is False for a
    model that no training made: it has no seeds to scatter.
    """

    values: Mapping[str, np.ndarray]
    resampled: Mapping[str, np.ndarray]
    trained: bool

    def mean(self, metric: str) -> float:
        """The metric on the data, the mean over the seeds."""
        return float(np.mean(self.values[metric]))

    def seed_error(self, metric: str) -> tuple[float, int] | None:
        """Variance of the mean over seeds, and its degrees of freedom; None where too few seeds tell it."""
        values = self.values[metric]
        if len(values) < ENOUGH_SEEDS:
            return None
        return float(np.var(values, ddof=1)) / len(values), len(values) - 1


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs with its 95 % interval; `over` says what that covers, `p_value` is two-sided."""

    value: float
    ci_low: float
    ci_high: float
    p_value: float
    over: str

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.ci_low > 0 or self.ci_high < 0


def sampled(
    metrics: Metrics,
    sides: Mapping[str, Sequence[pa.Table]],
    resamples: int = RESAMPLES,
    seed: int = 0,
    untrained: Collection[str] = (),
) -> dict[str, Sampled]:
    """Every side's metrics in the same resamples of the images; a side is its per-question tables, one a seed.

    Raises ValueError when the tables are not about the same questions.
    """
    first = next(iter(sides.values()))[0]
    for tables in sides.values():
        for table in tables:
            check_same_questions(first, table)
    clusters = {name: [Clusters.of(table) for table in tables] for name, tables in sides.items()}
    points = {name: [metrics(one.once()) for one in some] for name, some in clusters.items()}
    found: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in sides}
    strata = Clusters.of(first).strata
    for number, start in enumerate(range(0, resamples, AT_ONCE)):
        weights = resample_weights(strata, min(AT_ONCE, resamples - start), (seed, number))
        for name, some in clusters.items():
            estimates = [metrics(one.sums(weights)) for one in some]
            for metric in estimates[0]:
                mean = np.mean([estimate[metric].value for estimate in estimates], axis=0)
                found[name].setdefault(metric, []).append(mean)
    return {
        name: Sampled(
            {metric: np.array([float(one[metric].value[0]) for one in points[name]]) for metric in points[name][0]},
            {metric: np.concatenate(parts) for metric, parts in found[name].items()},
            name not in untrained,
        )
        for name in sides
    }


def difference(ours: Sampled, theirs: "Sampled | float", metric: str, seed: int = 0) -> Difference | None:
    """Ours minus theirs; `theirs` may be a fixed value. None where a side lacks the metric or it is undefined.

    The interval covers the images, and the seeds of every trained side that has at least ENOUGH_SEEDS of them.
    """
    fixed = isinstance(theirs, float)
    if metric not in ours.values or not (fixed or metric in theirs.values):
        return None
    value = ours.mean(metric) - (theirs if fixed else theirs.mean(metric))
    if np.isnan(value):
        return None
    moved = ours.resampled[metric] - (theirs if fixed else theirs.resampled[metric])
    trained = [side for side in (ours, *(() if fixed else (theirs,))) if side.trained]
    errors = [error for side in trained if (error := side.seed_error(metric)) is not None]
    over = IMAGES if not errors else SEEDS_AND_IMAGES if len(errors) == len(trained) else ONE_SIDE
    moved = moved + _seed_moves(errors, len(moved), seed)
    moved = np.where(np.abs(moved) < _ROUNDING, 0.0, moved)
    return Difference(
        0.0 if abs(value) < _ROUNDING else value, *percentile_interval(moved), p_value(moved[~np.isnan(moved)]), over
    )


def p_value(resampled: np.ndarray) -> float:
    """How often the sign of resampled differences is not that of most of them, twice: a two-sided p-value.

    One resample is counted on top, for the data themselves: a p-value is never 0.
    """
    wrong = int(min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0)))
    return min(1.0, 2 * (wrong + 1) / (len(resampled) + 1))


def _seed_moves(errors: Sequence[tuple[float, int]], resamples: int, seed: int) -> np.ndarray:
    """Draws of how far off the difference is for the few seeds it is a mean over, (resamples,)."""
    variance = sum(error for error, _ in errors)
    if variance < _ROUNDING**2:
        return np.zeros(resamples)
    freedom = variance**2 / sum(error**2 / degrees for error, degrees in errors)
    # Apart from the draws of images, which begin with the same seed.
    return np.random.default_rng((seed, resamples, 1)).standard_t(freedom, resamples) * np.sqrt(variance)
