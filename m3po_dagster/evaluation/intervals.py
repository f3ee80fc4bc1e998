"""Bootstrap intervals over images: questions about one image are not independent, so whole images are resampled.

Every metric is a function of sums of counts over questions (true positives, hallucinated objects, ...). So the counts
are summed within each image once, a resample is a vector of image weights, and all resamples of all metrics are one
matrix product: ratios and means of ratios are recomputed in each resample, as they must be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

RESAMPLES = 1000
LEVEL = 95.0

DESCRIBING = ("question_id", "image_uri", "group", "stratum")
"""Columns of a per-question table that are not counts."""


@dataclass(frozen=True)
class Sums:
    """Sums of counts: `sums[group, count]` is an array (resamples,); `groups` are those there are questions of."""

    groups: tuple[str, ...]
    values: Mapping[tuple[str, str], np.ndarray]

    def __getitem__(self, key: tuple[str, str]) -> np.ndarray:
        return self.values[key]


@dataclass(frozen=True)
class Estimate:
    """A metric in every resample: its value, and the number of questions it is computed from; arrays (resamples,)."""

    value: np.ndarray
    n: np.ndarray


@dataclass(frozen=True)
class Metric:
    """A metric with its 95 % bootstrap interval over images; shares are in per cent."""

    metric: str
    value: float
    n: int
    ci_low: float
    ci_high: float


Metrics = Callable[[Sums], dict[str, Estimate]]


@dataclass(frozen=True)
class Clusters:
    """Counts summed within images: `counts` is (images, groups, counts); images and groups are sorted."""

    images: tuple[str, ...]
    strata: tuple[str, ...]
    groups: tuple[str, ...]
    names: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Clusters":
        """The clusters of a per-question table. Raises ValueError when an image sits in two strata."""
        names = tuple(name for name in table.column_names if name not in DESCRIBING)
        images, image_of = np.unique(_texts(table, "image_uri"), return_inverse=True)
        groups, group_of = np.unique(_texts(table, "group"), return_inverse=True)
        counts = np.zeros((len(images), len(groups), len(names)))
        for position, name in enumerate(names):
            np.add.at(counts[:, :, position], (image_of, group_of), table.column(name).to_numpy().astype(float))
        strata = _stratum_of_images(image_of, _texts(table, "stratum"), images)
        return cls(tuple(images), strata, tuple(groups), names, counts)

    def sums(self, weights: np.ndarray) -> Sums:
        """Sums of the counts with image weights (resamples, images)."""
        resampled = (weights @ self.counts.reshape(len(self.images), -1)).reshape(-1, *self.counts.shape[1:])
        values = {
            (group, name): resampled[:, g, c]
            for g, group in enumerate(self.groups)
            for c, name in enumerate(self.names)
        }
        return Sums(self.groups, values)

    def once(self) -> Sums:
        """The sums of the data themselves: every image once; arrays of length 1."""
        return self.sums(np.ones((1, len(self.images))))


def resample_weights(strata: Sequence[str], resamples: int = RESAMPLES, seed: int | tuple[int, ...] = 0) -> np.ndarray:
    """How often each image is drawn in each resample, (resamples, images); each stratum keeps its number of images."""
    generator = np.random.default_rng(seed)
    labels = np.asarray(strata, dtype=object)
    weights = np.zeros((resamples, len(labels)))
    for stratum in sorted(set(strata)):
        members = np.flatnonzero(labels == stratum)
        weights[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return weights


def estimate_metrics(metrics: Metrics, table: pa.Table, resamples: int = RESAMPLES, seed: int = 0) -> list[Metric]:
    """Every metric of a per-question table with its percentile interval."""
    clusters = Clusters.of(table)
    points = metrics(clusters.once())
    resampled = metrics(clusters.sums(resample_weights(clusters.strata, resamples, seed)))
    return [
        Metric(name, float(point.value[0]), round(float(point.n[0])), *percentile_interval(resampled[name].value))
        for name, point in points.items()
    ]


def ratio(numerator: np.ndarray, denominator: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """numerator / denominator, and `empty` where the denominator is 0."""
    result = np.full(np.broadcast(numerator, denominator).shape, empty)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The ends of the middle 95 % of resampled values; undefined ones are left out, and both ends NaN of them alone."""
    if np.isnan(values).all():
        return np.nan, np.nan
    tail = (100 - LEVEL) / 2
    # A resample may draw no image of a small group: the metric is undefined there, not 0.
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def check_same_questions(first: pa.Table, second: pa.Table) -> None:
    """Raises ValueError when two per-question tables are about different questions, naming the first that differs."""
    for name in DESCRIBING:
        one = dict(zip(_texts(first, "question_id"), _texts(first, name), strict=True))
        other = dict(zip(_texts(second, "question_id"), _texts(second, name), strict=True))
        if one != other:
            differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            raise ValueError(
                f"the two results are not about the same questions: {name} differs for {len(differing)}, "
                f"first {differing[0]}"
            )


def _stratum_of_images(image_of: np.ndarray, strata: np.ndarray, images: np.ndarray) -> tuple[str, ...]:
    found: dict[int, str] = {}
    for image, stratum in zip(image_of, strata, strict=True):
        if found.setdefault(image, stratum) != stratum:
            raise ValueError(f"image {images[image]} sits in two strata, {found[image]!r} and {stratum!r}")
    return tuple(found[image] for image in range(len(images)))


def _texts(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_pylist(), dtype=object)
