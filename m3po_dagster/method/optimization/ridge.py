"""Ridge regression in closed form, over blocks of rows, its penalty chosen on rows held out."""

from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-8, 5))
"""Tried penalties, in units of a standardised feature's own mean square."""
BLOCK = 1024


@dataclass(frozen=True)
class Ridge:
    """A linear function of features (d,): what is left of the mean, weighted, on top of an intercept."""

    mean: np.ndarray
    weights: np.ndarray
    intercept: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> (n,), float64."""
        blocks = [features[start : start + BLOCK] for start in range(0, len(features), BLOCK)]
        return np.concatenate([(block.astype(np.float64) - self.mean) @ self.weights for block in blocks]) + (
            self.intercept
        )


@dataclass(frozen=True)
class Moments:
    """What a regression needs of its rows: their number, means, and centred second moments, each over n."""

    n: int
    mean: np.ndarray
    target: float
    second: np.ndarray
    cross: np.ndarray


def moments(features: np.ndarray, targets: np.ndarray) -> Moments:
    """Moments of features (n, d) of any float type and targets (n,), summed in float64 a block of rows at a time."""
    n, d = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    target = float(targets.mean(dtype=np.float64))
    second, cross = np.zeros((d, d)), np.zeros(d)
    for start in range(0, n, BLOCK):
        block = features[start : start + BLOCK].astype(np.float64) - mean
        second += block.T @ block
        cross += block.T @ (targets[start : start + BLOCK] - target)
    return Moments(n, mean, target, second / n, cross / n)


def solve(found: Moments, penalty: float) -> Ridge:
    """The minimum of the mean squared error plus `penalty` times the squared weights of standardised features.

    A feature that does not vary gets no weight.
    """
    spread = np.sqrt(np.diag(found.second))
    varies = spread > 0
    scale = np.where(varies, spread, 1.0)
    system = found.second / scale / scale[:, None]
    system[np.diag_indices_from(system)] += penalty
    weights = np.where(varies, np.linalg.solve(system, found.cross / scale) / scale, 0.0)
    return Ridge(found.mean, weights, found.target)


def fit_ridge(features: np.ndarray, targets: np.ndarray, held_out: np.ndarray) -> tuple[Ridge, float]:
    """The regression on all rows and its penalty, the one of PENALTIES that errs least on the rows `held_out` (n,).

    Raises ValueError when either kind of row is missing.
    """
    if held_out.all() or not held_out.any():
        raise ValueError(f"{held_out.sum()} of {len(held_out)} rows are held out: neither none nor all can be")
    rest = moments(features[~held_out], targets[~held_out])
    errors = [
        float(np.square(solve(rest, penalty)(features[held_out]) - targets[held_out]).mean()) for penalty in PENALTIES
    ]
    penalty = PENALTIES[int(np.argmin(errors))]
    return solve(moments(features, targets), penalty), penalty
