"""What judging will take: OpenAI's published examples, lengths, and what was measured in their place."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.alignment.budget import PriceSettings
from m3po_dagster.method.alignment.estimate import Estimate, at_most, expected, image_tokens, text_tokens
from m3po_dagster.method.alignment.turn import Spend

PRICES = PriceSettings(input=2.5, cached_input=1.25, output=10.0)


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (1024, 1024, 765),  # OpenAI's own examples
        (2048, 4096, 1105),
        (512, 512, 255),
        (513, 512, 425),
        (1, 1, 255),
        (336, 336, 255),
        (640, 480, 425),
        (10_000, 1, 85 + 170 * 4),
        (1000, 3000, 85 + 170 * 2 * 4),
    ],
)
def test_image_tokens(width, height, tokens):
    assert image_tokens(width, height) == tokens == image_tokens(height, width)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_an_image_is_at_most_8_tiles_and_never_fewer_for_more_pixels(width, height):
    # After shrinking the shorter side is two tiles at most, the longer four.
    tiles = (image_tokens(width, height) - 85) / 170
    assert tiles in (1, 2, 3, 4, 6, 8)
    assert image_tokens(2 * width, 2 * height) >= image_tokens(width, height)


def test_no_image_has_no_pixels():
    with pytest.raises(ValueError, match="0 x 5"):
        image_tokens(0, 5)


@given(st.text(), st.text())
def test_text_tokens_are_a_quarter_of_the_bytes(one, other):
    assert text_tokens(one) == math.ceil(len(one.encode()) / 4)
    assert text_tokens(one + other) <= text_tokens(one) + text_tokens(other)


def test_from_lengths_until_something_is_measured():
    found = expected(["a" * 400, "b" * 41], 1024, 1024, 8, PRICES, Spend(), reply_tokens=50)
    assert found == Spend(1, 100 + 11 + 765, 0, 400, pytest.approx((876 * 2.5 + 400 * 10) / 1e6))
    assert expected(["a"], 1, 1, 1, None, Spend()).cost == 0
    # Three replies measured: their mean, cached tokens and all.
    measured = Spend(3, 6000, 3000, 900, 99.0)
    found = expected(["a" * 400], 1024, 1024, 8, PRICES, measured)
    assert found == Spend(1, 2000, 1000, 300, pytest.approx((1000 * 2.5 + 1000 * 1.25 + 300 * 10) / 1e6))


@given(st.lists(st.text(), max_size=3), st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 8))
def test_what_is_reserved_is_never_less_than_expected(texts, width, height, answers):
    for measured in (Spend(), Spend(2, 9001, 3000, 120)):
        likely = expected(texts, width, height, answers, PRICES, measured)
        most = at_most(texts, width, height, 1000, PRICES, measured)
        assert most.prompt_tokens >= likely.prompt_tokens and most.cost >= likely.cost
        assert (most.requests, most.cached_tokens, most.completion_tokens) == (1, 0, 1000)


def test_an_estimate_says_where_its_tokens_come_from():
    requests = [expected(["a" * 400], 512, 512, 2, PRICES, Spend(), reply_tokens=50)] * 10
    facts = Estimate.of(requests, 3, PRICES, Spend()).facts()
    assert facts == {
        "requests": 10,
        "prompt tokens": 3550,
        "completion tokens": 1000,
        "cost": round(10 * (355 * 2.5 + 100 * 10) / 1e6, 4),
        "in the ledger": 3,
        "tokens from": "lengths; nothing is measured yet",
    }
    measured = Estimate.of(requests, 0, None, Spend(1234, 1, 1, 1))
    assert measured.facts()["tokens from"] == "the mean of 1,234 replies" and "cost" not in measured.facts()
