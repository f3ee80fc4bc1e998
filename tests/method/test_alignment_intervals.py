"""Intervals: quantiles as printed in tables, and as often right as they say."""

import math

import numpy as np
import pytest

from m3po_dagster.method.alignment.intervals import mean_interval, share_interval, t_quantile


@pytest.mark.parametrize(
    ("p", "df", "printed"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.95, 7, 1.895),
        (0.995, 7, 3.499),
        (0.975, 10, 2.228),
        (0.995, 30, 2.750),
        (0.975, 120, 1.980),
        (0.995, 100_000, 2.576),
        (0.5, 4, 0.0),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(p, df, printed):
    assert t_quantile(p, df) == pytest.approx(printed, abs=6e-4)


def test_the_interval_of_a_mean_by_hand():
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    reach = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.value, found.n) == (3.0, 5)
    assert (found.low, found.high) == pytest.approx((3 - reach, 3 + reach), abs=1e-5)


def test_weights_make_the_ratio_of_two_sums():
    hits, totals = np.array([3.0, 1.0, 8.0]), np.array([4.0, 5.0, 9.0])
    found = mean_interval(hits / totals, totals)
    assert found.value == pytest.approx(hits.sum() / totals.sum())
    equal = mean_interval([0.1, 0.4, 0.3], [7.0, 7.0, 7.0])
    plain = mean_interval([0.1, 0.4, 0.3])
    assert (equal.low, equal.high) == pytest.approx((plain.low, plain.high))


@pytest.mark.parametrize("n", [6, 8, 40])
def test_a_95_percent_interval_holds_the_mean_95_times_in_100(n):
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 1.0, (2000, n))
    held = [found.low <= 0.3 <= found.high for found in map(mean_interval, samples)]
    assert 0.935 <= np.mean(held) <= 0.965


def test_one_observation_is_no_interval():
    assert math.isnan(mean_interval([1.0]).low) and math.isnan(mean_interval([]).value)
    assert math.isnan(share_interval(1, 1).high)


def test_wilsons_interval_as_published():
    # 15 of 148, a worked example of Wilson's interval (Newcombe 1998, table I): 0.0624 to 0.1605.
    found = share_interval(15, 148)
    assert (found.low, found.high) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert 0.2 < share_interval(0, 10).high < 0.35 and share_interval(0, 10).low == pytest.approx(0.0, abs=1e-12)
