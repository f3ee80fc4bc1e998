"""Untrusted text: nothing hidden, nothing endless."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.inspector.text import count, cut, cut_off, figure, number, share, visible


@given(st.text())
def test_nothing_that_controls_or_turns_text_is_left(text):
    seen = visible(text)
    assert not any(unicodedata.category(char) == "Cc" for char in seen if char not in "\n\t")
    assert not set(seen) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff")
    seen.encode("utf-8")
    if text.isalnum():
        assert seen == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\0b", "a\u2400b"),
        ("\u202egnp.exe", "\u2039U+202E\u203agnp.exe"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x1b[31m", "\u241b[31m"),
        ("\x7f\x85", "\u2421\u2039U+0085\u203a"),
        ("\ud800", "?"),
        ("שלום", "שלום"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_what_hides_gets_a_mark_and_what_belongs_to_a_script_stays(text, seen):
    assert visible(text) == seen


def test_a_long_text_is_cut_and_says_by_how_much():
    text = "a" * 1_000_000
    assert len(cut(text)) == 4000 and cut_off(text) == 996_000 and cut_off("short") == 0


def test_figures():
    assert number(-0.12345) == "\u22120.123" and number(None) == number(float("nan")) == "\u2013"
    assert share(0.5) == "50.0 %" and share(None) == "\u2013" and count(1234567) == "1,234,567"
    assert figure(4.0) == "4" and figure(0.5) == "0.500" and figure(1.0) == "1.000" and figure("x\0") == "x\u2400"
