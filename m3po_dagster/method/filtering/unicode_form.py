"""Unicode's normal forms in linear time."""

import itertools
import unicodedata
from typing import Literal

MOST_MARKS = 30
"""Marks on one letter up to which Unicode's stream-safe format (UAX 15) wants text to be normalised."""


def to_form(form: Literal["NFC", "NFKC"], text: str) -> str:
    """The text in a normal form; as it is when it stacks more than 30 marks on a letter, as no language does.

    Putting stacked marks in order takes quadratic time: 80,000 of them take 6 seconds, a million would take a quarter
    of an hour.
    """
    if text.isascii():
        return text
    marks = itertools.groupby(text, key=lambda character: unicodedata.combining(character) > 0)
    if any(stacked and sum(1 for _ in run) > MOST_MARKS for stacked, run in marks):
        return text
    return unicodedata.normalize(form, text)
