"""Ridge regression against least squares on augmented rows, which needs no second moments."""

import numpy as np
import pytest

from m3po_dagster.method.optimization.ridge import BLOCK, PENALTIES, fit_ridge, moments, solve


def data(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of uneven scales far from 0, and targets that are partly a function of them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 10.0 ** rng.integers(-2, 3, d) + 50
    return features, features[:, 0] / 3 - features[:, -1] + rng.normal(size=n)


def by_least_squares(features: np.ndarray, targets: np.ndarray, penalty: float, new: np.ndarray) -> np.ndarray:
    """What |y - Xw|^2 / n + penalty |w|^2 is least for, X standardised: rows sqrt(n penalty) I pull at 0."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    x = np.vstack([(features - mean) / spread, np.sqrt(len(features) * penalty) * np.eye(features.shape[1])])
    y = np.concatenate([targets - targets.mean(), np.zeros(features.shape[1])])
    return (new - mean) / spread @ np.linalg.lstsq(x, y, rcond=None)[0] + targets.mean()


@pytest.mark.parametrize("penalty", [1e-4, 0.03, 10.0])
@pytest.mark.parametrize(("n", "d"), [(40, 5), (6, 9), (2 * BLOCK + 7, 4)])
def test_it_is_the_minimum_of_the_penalised_error(n, d, penalty):
    features, targets = data(n, d)
    new, _ = data(BLOCK + 3, d, seed=1)
    ours = solve(moments(features, targets), penalty)(new)
    assert ours == pytest.approx(by_least_squares(features, targets, penalty, new), rel=1e-6, abs=1e-6)


def test_float32_rows_are_summed_in_float64():
    features, targets = data(500, 6)
    rough = features.astype(np.float32)
    ours = solve(moments(rough, targets), 0.1)(rough)
    assert ours == pytest.approx(by_least_squares(rough.astype(np.float64), targets, 0.1, rough), abs=1e-6)


def test_a_feature_that_does_not_vary_has_no_say():
    features, targets = data(30, 3)
    with_constant = np.column_stack([features, np.full(30, 7.0)])
    ridge = solve(moments(with_constant, targets), 0.1)
    assert ridge.weights[3] == 0
    assert ridge(with_constant) == pytest.approx(solve(moments(features, targets), 0.1)(features))


def test_the_penalty_is_the_one_that_errs_least_on_what_was_held_out():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 40))
    targets = features[:, 0] + rng.normal(size=60)
    held_out = np.arange(60) % 3 == 0
    ridge, penalty = fit_ridge(features, targets, held_out)
    errors = {
        tried: np.square(
            by_least_squares(features[~held_out], targets[~held_out], tried, features[held_out]) - targets[held_out]
        ).mean()
        for tried in PENALTIES
    }
    assert penalty == min(errors, key=errors.get)
    assert PENALTIES[0] < penalty < PENALTIES[-1], "at an end of the grid nothing was chosen"
    assert ridge(features) == pytest.approx(by_least_squares(features, targets, penalty, features)), "not on all rows"


@pytest.mark.parametrize("held_out", [np.zeros(5, bool), np.ones(5, bool)])
def test_nothing_to_choose_by_is_refused(held_out):
    with pytest.raises(ValueError, match="of 5 rows are held out"):
        fit_ridge(np.ones((5, 2)), np.ones(5), held_out)
