"""When failed prompts are too many, and what is said then."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.method.generation.failures import Failures, TooManyFailed, too_many


@pytest.mark.parametrize(
    ("failed", "prompts", "share", "wanted"),
    [
        (0, 0, 0.0, False),
        (0, 10, 0.0, False),
        (1, 10, 0.0, True),
        (5, 100, 0.05, False),
        (6, 100, 0.05, True),
        (29, 100, 0.29, False),
        (10, 10, 1.0, False),
    ],
)
def test_more_than_the_share_is_too_many(failed, prompts, share, wanted):
    assert too_many(failed, prompts, share) is wanted


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 1))
def test_stops_at_the_first_failure_beyond_the_share(prompts, share):
    failures, stopped = Failures(prompts, share), None
    for number in range(1, prompts + 1):
        failures.add("why", ())
        try:
            failures.check()
        except TooManyFailed:
            stopped = number
            break
    assert stopped == next((n for n in range(1, prompts + 1) if n / prompts > share), None)


def test_counts_kinds_of_reasons_and_gives_the_first_in_full():
    failures = Failures(20, 0.1)
    for n in range(3):
        reason = f"prompt 1{n}ab (image {n}.png): the image can't be decoded: cannot identify image file '{n}.png'"
        failures.add(reason, (f"1{n}ab", f"{n}.png"))
    failures.add("prompt x (image 7.png): 612 tokens leave no room for an answer in 512 positions", ("x", "7.png"))
    with pytest.raises(TooManyFailed) as caught:
        failures.check()
    said = str(caught.value)
    assert said.startswith(
        "4 of 20 prompts could not be sampled so far, more than generation.max_failed = 0.1 allows: "
    )
    assert "3 x the image can't be decoded: cannot identify image file '*'; 1 x # tokens leave no room" in said
    assert "The first: prompt 10ab (image 0.png): the image can't be decoded" in said
    assert "run it again" in said


def test_many_kinds_are_cut():
    failures = Failures(10, 0.0)
    for letter in "abcde":
        failures.add(f"reason {letter}", ())
    with pytest.raises(
        TooManyFailed, match=r"1 x reason a; 1 x reason b; 1 x reason c; \.\.\.\. The first: reason a\."
    ):
        failures.check()
