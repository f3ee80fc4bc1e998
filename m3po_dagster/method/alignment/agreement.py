"""How far a judge's values agree with human ratings: correlations and ordered pairs, each with its 95 % interval.

Answers about one image are not independent, so intervals come from resampling whole images. A resample is a vector of
image weights; everything here is computed from weighted sums over all resamples at once, tied values and repeated
images included, so that each is exactly what the plain statistic of the resampled answers would be.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RESAMPLES = 2000
LEVEL = 95.0
CELLS_AT_ONCE = 4_000_000
"""Resamples times answers that are held in memory together."""


@dataclass(frozen=True)
class Statistic:
    """A value with its percentile interval; None where it is not defined (nothing varies) or can't be resampled.

    `undefined` counts the resamples, of all, in which it was not defined and which the interval leaves out.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: int = 0


@dataclass(frozen=True)
class OrderedPairs:
    """Pairs of answers to one prompt that the raters put in an order, and what the judge makes of them."""

    pairs: int
    right: int
    tied: int
    accuracy: Statistic
    """Share ordered as by the raters, a tie of the judge's counting half; 0.5 is chance."""


@dataclass(frozen=True)
class Agreement:
    """One column of scores against the mean rating of each answer."""

    answers: int
    images: int
    unscored: int
    pearson: Statistic
    spearman: Statistic
    kendall: Statistic
    """tau-b, which allows for ties on both sides."""
    pairs: OrderedPairs


@dataclass(frozen=True)
class RaterAgreement:
    """How far the raters agree with each other, over the answers that several of them rated."""

    answers: int
    ratings: int
    alpha: Statistic
    """Krippendorff's alpha for interval data: 1 is full agreement, 0 is chance."""
    one_against_others: Statistic
    """Spearman's correlation of a rating with the mean of the other ratings of its answer."""


def agreement(
    values: Sequence[float | None],
    ratings: Sequence[float],
    prompts: Sequence[str],
    images: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """The agreement of `values` (None: unscored, left out and counted) with `ratings`, an entry an answer.

    `prompts` and `images` say to which prompt and image each answer belongs. Memory grows with the square of the number
    of images: 8 bytes a pair.
    """
    scored = np.array([value is not None for value in values], dtype=bool)
    # By image, so that sums within images are sums over slices.
    order = np.flatnonzero(scored)[np.argsort(np.asarray(images)[scored], kind="stable")]
    x = np.array([values[i] for i in order], dtype=float)
    y = np.asarray(ratings, dtype=float)[order]
    names, image_of = np.unique(np.asarray(images)[order], return_inverse=True)
    prompt_of = np.asarray(prompts)[order]
    counts = _pair_counts(x, y, prompt_of, image_of, len(names))
    weights = _weights(len(names), resamples, seed)
    return Agreement(
        answers=len(x),
        images=len(names),
        unscored=int((~scored).sum()),
        pearson=_statistic(lambda w: _over_answers(_pearson, x, y, image_of, w), weights),
        spearman=_statistic(lambda w: _over_answers(_spearman, x, y, image_of, w), weights),
        kendall=_statistic(_kendall(x, y, image_of, len(names)), weights),
        pairs=OrderedPairs(
            int(counts[:, 2].sum()),
            int(counts[:, 0].sum()),
            int(counts[:, 1].sum()),
            _statistic(lambda w: _accuracy(w @ counts), weights),
        ),
    )


def rater_agreement(
    ratings: Sequence[Sequence[float]], images: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> RaterAgreement | None:
    """How the raters agree; `ratings` holds every rating of each answer. None where no answer has several."""
    several = [i for i, given in enumerate(ratings) if len(given) > 1]
    if not several:
        return None
    several.sort(key=lambda i: images[i])
    names, image_of = np.unique([images[i] for i in several], return_inverse=True)
    sums = np.zeros((len(names), 4))
    rating, others, rated_image = [], [], []
    for place, i in zip(image_of, several, strict=True):
        given = np.asarray(ratings[i], dtype=float)
        n, first, second = len(given), given.sum(), (given**2).sum()
        sums[place] += 2 * (n * second - first**2) / (n - 1), n, first, second
        rating += given.tolist()
        others += ((first - given) / (n - 1)).tolist()
        rated_image += [place] * n
    x, y, image = np.array(rating), np.array(others), np.array(rated_image)
    weights = _weights(len(names), resamples, seed)
    return RaterAgreement(
        answers=len(several),
        ratings=len(rating),
        alpha=_statistic(lambda w: _alpha(w @ sums), weights),
        one_against_others=_statistic(lambda w: _over_answers(_spearman, x, y, image, w), weights),
    )


def _weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, images): how often each image is drawn; no rows where there are too few images to draw from."""
    if images < 2:
        return np.zeros((0, images))
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples).astype(float)


def _statistic(compute: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> Statistic:
    """`compute` gives the statistic of each row of image weights, NaN where it is not defined."""
    value = float(compute(np.ones((1, weights.shape[1])))[0]) if weights.shape[1] else np.nan
    if np.isnan(value):
        return Statistic(None)
    found = compute(weights) if len(weights) else np.empty(0)
    known = found[~np.isnan(found)]
    # With most resamples undefined, the rest would be a choice of the lucky ones.
    if 2 * len(known) <= len(found) or not len(found):
        return Statistic(value, undefined=len(found) - len(known))
    low, high = np.percentile(known, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Statistic(value, float(low), float(high), len(found) - len(known))


def _over_answers(
    correlation: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    image_of: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    step = max(1, CELLS_AT_ONCE // max(len(x), 1))
    blocks = [correlation(x, y, weights[start : start + step][:, image_of]) for start in range(0, len(weights), step)]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of each row of `weights` (resamples, answers); x and y by answer, or by row too."""
    varies = _varies(x, weights) & _varies(y, weights)
    total = weights.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True) / total
    dy = y - (weights * y).sum(axis=1, keepdims=True) / total
    spread = (weights * dx**2).sum(axis=1) * (weights * dy**2).sum(axis=1)
    together = (weights * dx * dy).sum(axis=1)
    known = varies & (spread > 0)
    return np.divide(together, np.sqrt(spread), out=np.full(len(weights), np.nan), where=known)


def _varies(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether the values of positive weight differ; a variance near 0 can't say so exactly."""
    there = weights > 0
    return np.where(there, values, -np.inf).max(axis=1) > np.where(there, values, np.inf).min(axis=1)


def _spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _pearson(_ranks(x, weights), _ranks(y, weights), weights)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resamples, answers): the middle rank of each answer's value when every answer stands there `weights` times."""
    order = np.argsort(values, kind="stable")
    starts = _starts(values[order])
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(counts, axis=1) - (counts - 1) / 2
    group = np.empty(len(values), dtype=int)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return middle[:, group]


def _kendall(x: np.ndarray, y: np.ndarray, image_of: np.ndarray, images: int) -> Callable[[np.ndarray], np.ndarray]:
    """tau-b as a function of image weights: copies of an answer are ties on both sides, so pairs of images suffice."""

    def weighted(weights: np.ndarray) -> np.ndarray:
        together, spread_x, spread_y = (
            np.einsum("ri,ri->r", weights @ matrix, weights) for matrix in (both, only_x, only_y)
        )
        spread = spread_x * spread_y
        return np.divide(together, np.sqrt(spread), out=np.full(len(weights), np.nan), where=spread > 0)

    both, only_x, only_y = (np.zeros((images, images)) for _ in range(3))
    starts = _starts(image_of)
    for image, rows in enumerate(_slices(starts, len(x))):
        sx, sy = (np.sign(values[rows, None] - values[None, :]) for values in (x, y))
        for matrix, signs in ((both, sx * sy), (only_x, sx * sx), (only_y, sy * sy)):
            matrix[image] = np.add.reduceat(signs.sum(axis=0), starts)
    return weighted


def _starts(ordered: np.ndarray) -> np.ndarray:
    """The places at which another value begins; none of nothing."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])


def _slices(starts: np.ndarray, end: int) -> Iterator[slice]:
    for start, stop in pairwise([*starts, end]):
        yield slice(start, stop)


def _pair_counts(x: np.ndarray, y: np.ndarray, prompt_of: np.ndarray, image_of: np.ndarray, images: int) -> np.ndarray:
    """(images, 3): pairs within a prompt that the raters order: ordered alike, tied by the judge, and all."""
    counts = np.zeros((images, 3))
    order = np.argsort(prompt_of, kind="stable")
    starts = _starts(prompt_of[order])
    for rows in _slices(starts, len(x)):
        members = order[rows]
        one, other = np.triu_indices(len(members), 1)
        sx, sy = (np.sign(values[members[one]] - values[members[other]]) for values in (x, y))
        ordered = sy != 0
        counts[image_of[members[0]]] += ((sx == sy) & ordered).sum(), ((sx == 0) & ordered).sum(), ordered.sum()
    return counts


def _accuracy(counts: np.ndarray) -> np.ndarray:
    right, tied, pairs = counts.T
    return np.divide(right + tied / 2, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _alpha(sums: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha, interval metric, from sums over answers: disagreement within, ratings, values, squares."""
    within, n, first, second = sums.T
    expected = 2 * (n * second - first**2)
    share = np.divide((n - 1) * within, expected, out=np.full(len(n), np.nan), where=expected > 1e-9 * n * second)
    return 1 - share
