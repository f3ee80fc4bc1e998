from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.multiple_comparisons import holm

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def closed_test(values):
    """What Holm's procedure abbreviates: a claim holds if every set of claims with it fails Bonferroni's test."""
    indices = range(len(values))
    sets = [some for size in range(1, len(values) + 1) for some in combinations(indices, size)]
    return [max(min(1.0, len(some) * min(values[i] for i in some)) for some in sets if one in some) for one in indices]


@given(p_values)
def test_it_is_the_closed_test(values):
    assert holm(values) == pytest.approx(closed_test(values))


def test_a_known_case():
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_of_ten_recipes_that_change_nothing_one_is_claimed_five_times_in_a_hundred():
    draws = np.random.default_rng(0).random((4000, 10))
    claimed = sum(min(holm(row.tolist())) < 0.05 for row in draws) / len(draws)
    without = np.mean((draws < 0.05).any(axis=1))
    assert 0.04 < claimed < 0.06 and without > 0.35


def test_no_p_value_is_refused():
    with pytest.raises(ValueError, match="nan is no p-value"):
        holm([0.1, float("nan")])
