"""How different samples are, against a calculation pair by pair."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.method.generation.diversity import jaccard, mean_similarity, measure

TEXTS = st.lists(st.text(max_size=12), min_size=1, max_size=6, unique=True)


def trigrams(text: str) -> set[str]:
    framed = f"\x02{text}\x03"
    return {framed[i : i + 3] for i in range(len(framed) - 2)}


def similarity(one: str, other: str) -> float:
    if one == other:
        return 1.0
    a, b = trigrams(one), trigrams(other)
    return len(a & b) / len(a | b)


@settings(deadline=None)
@given(
    TEXTS.flatmap(
        lambda texts: st.tuples(st.just(texts), st.lists(st.integers(1, 4), min_size=len(texts), max_size=len(texts)))
    )
)
def test_is_the_mean_over_all_pairs_of_samples(drawn):
    texts, times = drawn
    samples = [text for text, n in zip(texts, times, strict=True) for _ in range(n)]
    pairs = [similarity(one, other) for one, other in combinations(samples, 2)]
    if pairs:
        assert mean_similarity(texts, np.array(times, dtype=float)) == pytest.approx(np.mean(pairs), abs=1e-9)


@settings(deadline=None)
@given(TEXTS)
def test_similarity_is_symmetric_and_a_share(texts):
    alike = jaccard(texts)
    assert (alike == alike.T).all() and (alike.diagonal() == 1).all()
    assert ((alike >= 0) & (alike <= 1)).all()


def test_counts_samples_not_texts():
    found = measure([(["a cat", "a dog"], [6, 2], [False, True]), (["yes"], [1], [False])])
    assert (found.prompts, found.samples, found.distinct, found.truncated) == (2, 9, 3, 2)
    assert found.distinct_share == 3 / 9 and found.truncated_share == 2 / 9 and found.distinct_a_prompt == 1.5
    # A prompt with one sample has no pair; of the other, 16 of 28 pairs say the same.
    assert found.mean_similarity == pytest.approx((16 + 12 * similarity("a cat", "a dog")) / 28)


def test_nothing_is_no_number():
    found = measure([])
    assert (found.distinct_share, found.truncated_share, found.distinct_a_prompt, found.mean_similarity) == (None,) * 4


def test_scripts_without_spaces_count_too():
    alike = jaccard(["图中有一只红色的猫", "图中有一只蓝色的猫", "两个人在海边"])
    assert alike[0, 1] > 0.4 > 0.1 > alike[0, 2]
