"""Counts in bounded memory, against counts that hold everything."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.tallies import EXACT_LENGTHS, MOST_KINDS, OTHERS, Distinct, Kinds, Lengths, Sample, hash64

values = st.lists(st.integers(0, 30), max_size=200)


@given(values)
def test_distinct_values_and_how_often_each_are_exact_below_the_bound(added):
    distinct = Distinct(most=1000)
    for value in added:
        distinct.add(hash64(value))
    assert distinct.exact
    assert distinct.number == len(set(added))
    assert distinct.times() == Counter(Counter(added).values())
    assert distinct.repeats == len(added) - len(set(added))


def test_beyond_the_bound_the_count_is_an_estimate_and_says_so():
    distinct = Distinct(most=4096)
    for number in range(100_000):
        distinct.add(hash64(number))
        assert len(distinct._hashes) <= 4096
    assert not distinct.exact
    assert distinct.number == pytest.approx(100_000, rel=0.1)


def test_one_value_again_and_again_ends():
    distinct = Distinct(most=4)
    for _ in range(100):
        distinct.add(hash64("the same image"))
    assert not distinct.exact


@given(st.lists(st.integers(0, EXACT_LENGTHS), min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_are_those_of_the_sorted_lengths(sizes, share):
    lengths = Lengths()
    for size in sizes:
        lengths.add("x" * size)
    (found,) = lengths.quantiles([share])
    reached = sum(size <= found for size in sizes)
    below = sum(size < found for size in sizes)
    assert found in sizes and reached >= share * len(sizes) - 1e-6
    assert below <= share * len(sizes) + 1e-6


@given(st.integers(EXACT_LENGTHS + 1, 10**6))
def test_a_long_length_is_kept_to_a_thousandth(size):
    lengths = Lengths()
    lengths.add("é" * size)
    (found,) = lengths.quantiles([0.5])
    assert size - size / 1000 <= found <= size
    assert lengths.bytes == 2 * size and lengths.number == 1


def test_no_text_has_no_quantiles():
    assert Lengths().quantiles([0.5]) == []


def test_kinds_keep_a_few_examples_and_are_bounded():
    kinds = Kinds(examples_each=3)
    for number in range(10):
        kinds.add("image is missing", number)
    assert kinds.counts == {"image is missing": 10} and kinds.examples == {"image is missing": [0, 1, 2]}
    for number in range(2 * MOST_KINDS):
        kinds.add(f"kind {number}", number)
    assert len(kinds.counts) == MOST_KINDS + 1 and kinds.counts[OTHERS] == MOST_KINDS + 1
    assert sum(kinds.counts.values()) == 10 + 2 * MOST_KINDS
    assert len(kinds.examples[OTHERS]) == 3


def sampled(keys: list, size: int, seed: int = 0) -> list:
    sample: Sample = Sample(size, seed)
    held = set()
    for key in keys:
        assert sample.find(key) == (key if key in held else None)
        if (rank := sample.wants(key)) is not None:
            held.add(key)
            gone = sample.put(rank, key)
            held.discard(gone)
            assert len(held) <= size
    assert held == set(sample.items())
    return sample.items()


@given(values, st.integers(0, 12), st.randoms())
def test_a_sample_hangs_on_the_keys_alone(keys, size, random):
    wanted = sorted(set(keys), key=lambda key: hash64(0, key))[:size]
    assert sampled(keys, size) == wanted
    random.shuffle(keys)
    assert sampled(keys + keys, size) == wanted


def test_another_seed_is_another_sample():
    keys = list(range(1000))
    assert set(sampled(keys, 20, seed=0)) != set(sampled(keys, 20, seed=1))


def test_hashes_tell_parts_apart():
    assert len({hash64("ab", "c"), hash64("a", "bc"), hash64("abc"), hash64(b"abc", ""), hash64("c", "ab")}) == 5
    assert hash64("\ud800") != hash64("?")
