"""Cutting answers into statements loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.alignment.sentences import as_statements, split_sentences, windows


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog runs. It is brown!  Is it?", ["A dog runs.", "It is brown!", "Is it?"]),
        ("Dr. Smith, e.g. John F. Smith, waves. He smiles", ["Dr. Smith, e.g. John F. Smith, waves.", "He smiles"]),
        ("It costs 3.50 dollars. 2 are sold.", ["It costs 3.50 dollars.", "2 are sold."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Two things:\n- a dog\n* a cat\n1. a bird\n", ["Two things:", "a dog", "a cat", "a bird"]),
        (" ... \n - \n", []),
        ("", []),
        ("2", ["2"]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB1 .!?\"'()\n-", max_size=80))
def test_no_word_character_is_lost(text):
    def words(t: str) -> str:
        return "".join(c for c in t if c.isalpha())

    assert words("".join(split_sentences(text))) == words(text)


def test_only_a_sole_short_sentence_is_joined_to_its_question():
    assert as_statements("Is there a dog?", "Yes.", 4) == ["Is there a dog? Yes."]
    assert as_statements("Is there a dog?", "Yes.", 0) == ["Yes."]
    assert as_statements("Is there a dog?", "Yes, there is a dog.", 4) == ["Yes, there is a dog."]
    assert as_statements("Describe.", "A dog. A cat.", 4) == ["A dog.", "A cat."]
    assert as_statements("Describe.", " . ", 4) == []


@given(st.lists(st.text("abcé", min_size=1, max_size=12), min_size=1, max_size=30), st.integers(1, 15))
def test_windows_fit_and_hold_every_character_in_order(words, limit):
    text = " ".join(words)
    pieces = windows(text, lambda piece: len(piece) <= limit)
    assert all(len(piece) <= limit for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_a_text_that_fits_stays_whole():
    assert windows("one  two", lambda piece: True) == ["one  two"]


def test_a_context_without_room_is_an_error_not_a_loop():
    with pytest.raises(ValueError, match="single character"):
        windows("ab", lambda piece: False)
