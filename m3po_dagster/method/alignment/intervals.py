"""Intervals for a mean over prompts, and for a share of independent trials.

Answers to one prompt are not independent of each other, so a prompt is one observation, whatever many answers it has.
Student's t is computed here: a statistics package would be installed for this one function.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
NORMAL_FROM = 1000
"""Degrees of freedom from which Student's t is taken for normal: their quantiles differ by less than 0.3 % there."""


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval; `n` observations stand behind it. NaN with fewer than 2 of them."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], weights: Sequence[float] | None = None, level: float = LEVEL) -> Interval:
    """The weighted mean of independent observations with its t interval.

    With observation i = a_i / b_i and weight b_i the mean is the ratio sum(a) / sum(b), the interval its linearisation.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    n = len(x)
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, n)
    mean = float(np.average(x, weights=w))
    error = math.sqrt(float((w**2 * (x - mean) ** 2).sum()) * n / (n - 1)) / float(w.sum())
    reach = t_quantile((1 + level) / 2, n - 1) * error
    return Interval(mean, mean - reach, mean + reach, n)


def share_interval(successes: float, n: int, level: float = LEVEL) -> Interval:
    """A share of `n` independent trials with Wilson's interval, which also holds where all or none succeed."""
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, n)
    share, z2 = successes / n, NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return Interval(share, middle - reach, middle + reach, n)


@lru_cache(maxsize=256)
def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t, 0.5 <= p < 1, `df` a whole number: the inverse of its finite series."""
    normal = NormalDist().inv_cdf(p)
    if df >= NORMAL_FROM:
        return normal
    low, high = 0.0, 1.0
    while _below(high, df) < p:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, df) < p else (low, middle)
    return (low + high) / 2


def _below(t: float, df: int) -> float:
    """P(T <= t) for t >= 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, cosine if df > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(2 + odd, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
