"""How a text is cut: words, sentences, bullets and mentions of many scripts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.constraints.text import bullets, listed, mentions, sentences, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't stop: 3.5 red,blue", ["Don't", "stop", "3.5", "red", "blue"]),
        ("a well-known—but old - thing", ["a", "well-known", "but", "old", "thing"]),
        ("1,000 dogs, 'quoted'.", ["1,000", "dogs", "quoted"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("... -- !", []),
    ],
)
def test_words(text, found):
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. two! Three? Four", ["One.", "two!", "Three?", "Four"]),
        ("Dr. No, i.e. Mr. J. No, is 3.5 m tall. He left.", ["Dr. No, i.e. Mr. J. No, is 3.5 m tall.", "He left."]),
        ("Title\n\n1. red. blue\n- green", ["Title", "red.", "blue", "green"]),
        ('He said "Go!" and left. fine', ['He said "Go!" and left.', "fine"]),
        ('"Go." Then he left...', ['"Go."', "Then he left..."]),
        ("他走了。她来了！", ["他走了。", "她来了！"]),
        ("No. There is none.", ["No.", "There is none."]),
        ("-\n!", []),
        ("**Bold.** Next.", ["**Bold.**", "Next."]),
        ("_So?_ **Yes!**", ["_So?_", "**Yes!**"]),
        ('**"Go."** He left.', ['**"Go."**', "He left."]),
        ("It is **red.** and round.", ["It is **red.** and round."]),
        ("**Mr.** Smith, _e.g._ **J.** Smith.", ["**Mr.** Smith, _e.g._ **J.** Smith."]),
        ("**他走了。** **她来了。**他", ["**他走了。**", "**她来了。", "**他"]),
        ("他走了。**她来了。**", ["他走了。", "**她来了。**"]),
    ],
)
def test_sentences(text, found):
    assert sentences(text) == found


@given(st.lists(st.sampled_from(["It is red.", "there is none!", "Is it?", "Yes."]), max_size=6))
def test_there_are_as_many_sentences_as_were_joined(given_sentences):
    assert sentences(" ".join(given_sentences)) == given_sentences


def test_bullets_open_with_a_mark_and_a_space():
    assert bullets("- a\n * b\n+ c\n• d\n-e\n- \n1. f") == ["- a", "* b", "+ c", "• d"]


@pytest.mark.parametrize(
    ("text", "phrase", "times"),
    [
        ("Red circle, RED\ncircle.", "red circle", 2),
        ("redcircle, red circles", "red circle", 0),
        ("का", "क", 0),
        ("a+b and a+b", "a+b", 2),
        ("STRASSE", "straße", 1),
    ],
)
def test_mentions_are_whole_words(text, phrase, times):
    assert mentions(text, phrase) == times


def test_an_enumeration():
    assert listed(("a",), "or") == '"a"' and listed(("a", "b", "c"), "or") == '"a", "b" or "c"'
