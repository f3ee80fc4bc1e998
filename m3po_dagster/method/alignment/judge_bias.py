"""What a judge's scores have to do with other things than the answers' quality: place, length, order, image.

Every figure is taken within prompts and averaged over them: whether one prompt is easier than another says nothing of
the judge. Arrays are (answers,), NaN where there is no score; `groups` holds the indices of each prompt's answers.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from m3po_dagster.method.alignment.intervals import Interval, mean_interval

Groups = Sequence[np.ndarray]


def by_prompt(prompt_ids: Sequence[str]) -> list[np.ndarray]:
    """The indices of each prompt's answers."""
    if not len(prompt_ids):
        return []
    _, number = np.unique(np.asarray(prompt_ids, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1)


def rank_correlation(groups: Groups, a: np.ndarray, b: np.ndarray, level: float) -> Interval:
    """Spearman's correlation of `a` and `b` within prompts, averaged over those where both vary.

    A prompt of n answers weighs n - 1, the inverse variance of its correlation where there is none.
    """
    found = []
    for group in groups:
        x, y = a[group], b[group]
        known = ~np.isnan(x) & ~np.isnan(y)
        x, y = _ranks(x[known]), _ranks(y[known])
        if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found.append((np.corrcoef(x, y)[0, 1], len(x) - 1))
    return _averaged(found, level)


def place_correlations(groups: Groups, value: np.ndarray, place: np.ndarray, level: float) -> dict[str, Interval]:
    """Rank correlations of a score with the answer's place in its request.

    `place`: an early or a late place is preferred; `ends`: the distance from the middle, as a judge prefers who reads
    the first and the last answers and skims those between. Places are chance, so both are 0 for an unbiased judge.
    """
    middle = np.full(len(place), np.nan)
    for group in groups:
        if not np.isnan(place[group]).all():
            middle[group] = (1 + np.nanmax(place[group])) / 2
    return {
        "place": rank_correlation(groups, value, place, level),
        "ends": rank_correlation(groups, value, np.abs(place - middle), level),
    }


def longer_wins(groups: Groups, value: np.ndarray, length: np.ndarray, level: float) -> Interval:
    """Of pairs of a prompt's answers that differ in both, the share where the longer one has the higher score."""
    return _share_of_pairs(
        groups,
        level,
        value,
        length,
        counts=lambda v, n: (v != 0) & (n != 0),
        hits=lambda v, n: v == n,
    )


def flipped(groups: Groups, first: np.ndarray, second: np.ndarray, level: float) -> Interval:
    """Of pairs of a prompt's answers that the first asking put in an order, the share that the second reversed."""
    return _share_of_pairs(
        groups,
        level,
        first,
        second,
        counts=lambda one, _: one != 0,
        hits=lambda one, two: one == -two,
    )


def mean_fall(groups: Groups, before: np.ndarray, after: np.ndarray, level: float) -> Interval:
    """How far the scores of a prompt's answers fall on average from one asking to the next, over prompts."""
    differences = [(before - after)[group] for group in groups]
    known = [one[~np.isnan(one)] for one in differences]
    return mean_interval([one.mean() for one in known if len(one)], level=level)


def top_ties(groups: Groups, value: np.ndarray) -> tuple[Interval, Interval]:
    """Share of the prompts whose best score several answers have, and the mean share of its answers that have it.

    Over prompts with at least two scored answers.
    """
    tied, shares = [], []
    for group in groups:
        scored = value[group][~np.isnan(value[group])]
        if len(scored) > 1:
            top = int((scored == scored.max()).sum())
            tied.append(float(top > 1))
            shares.append(top / len(scored))
    return mean_interval(tied), mean_interval(shares)


def _share_of_pairs(
    groups: Groups,
    level: float,
    a: np.ndarray,
    b: np.ndarray,
    counts: Callable[[np.ndarray, np.ndarray], np.ndarray],
    hits: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Interval:
    """Of the pairs that count, the share that hits, with its interval over prompts; both see signs of differences."""
    found = []
    for group in groups:
        x, y = a[group], b[group]
        known = ~np.isnan(x) & ~np.isnan(y)
        one, other = np.triu_indices(int(known.sum()), 1)
        x, y = x[known], y[known]
        signs = np.sign(x[one] - x[other]), np.sign(y[one] - y[other])
        counted = counts(*signs)
        if total := int(counted.sum()):
            found.append((float((hits(*signs) & counted).sum()) / total, total))
    return _averaged(found, level)


def _averaged(found: Iterable[tuple[float, float]], level: float) -> Interval:
    values, weights = zip(*found, strict=True) if found else ((), ())
    return mean_interval(values, weights, level)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
