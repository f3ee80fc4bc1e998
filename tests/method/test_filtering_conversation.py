import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.method.filtering.conversation import (
    MAX_CONTEXT_CHARACTERS,
    MAX_CONTEXT_TURNS,
    questions,
    strip_image_token,
)
from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.unicode_form import MOST_MARKS, to_form
from tests.method.source_rows import said

TALK = said("<image>\nFirst?", "One.", "Second?", "Two.")


@pytest.mark.parametrize(
    ("turns", "conversation", "expected"),
    [
        ("first", TALK, [(0, ["First?"], "One.")]),
        ("last", TALK, [(1, ["First?", "One.", "Second?"], "Two.")]),
        ("each", TALK, [(0, ["First?"], "One."), (1, ["First?", "One.", "Second?"], "Two.")]),
        ("last", TALK[:3], [(1, ["First?", "One.", "Second?"], None)]),
        ("each", TALK[:3], [(0, ["First?"], "One."), (1, ["First?", "One.", "Second?"], None)]),
        ("last", TALK[:2], [(0, ["First?"], "One.")]),
        ("first", TALK[:1], [(0, ["First?"], None)]),
        ("each", (("gpt", "Hello."), *TALK[:2]), [(0, ["First?"], "One.")]),
        ("last", (("gpt", "Hello."), *TALK), [(1, ["First?", "One.", "Second?"], "Two.")]),
    ],
)
def test_first_asks_alone_last_and_each_bring_the_turns_before_them(turns, conversation, expected):
    found = questions(conversation, turns)
    assert [(one.turn, [said.text for said in one.messages], one.reference) for one in found] == expected
    for one in found:
        assert [said.role for said in one.messages] == (["user", "assistant"] * len(one.messages))[: len(one.messages)]


@pytest.mark.parametrize(
    ("conversation", "reason", "detail"),
    [
        ((), "no human turn", "conversations has no human turn"),
        ((("gpt", "Hello."),), "no human turn", "conversations has no human turn"),
        (
            (("gpt", "Hi."), ("gpt", "Hi."), ("human", "What?")),
            "turns don't alternate",
            "conversations[1].from is 'gpt'",
        ),
        ((("human", "Hm"), ("human", "What?")), "turns don't alternate", "conversations[1].from is 'human'"),
        ((("system", "Be kind."), *TALK), "turns don't alternate", "conversations[0].from is 'system'"),
        ((("gpt", "Hi."), *TALK, ("gpt", "Three.")), "turns don't alternate", "conversations[5].from is 'gpt'"),
    ],
)
@pytest.mark.parametrize("turns", ["first", "last", "each"])
def test_a_conversation_that_does_not_alternate_is_dropped_whole(turns, conversation, reason, detail):
    assert questions(conversation, turns) == Dropped(reason, detail)


def unusable(conversation, turns):
    return [
        (one.turn, one.unusable and (one.unusable.reason, one.unusable.detail))
        for one in questions(conversation, turns)
    ]


def test_an_empty_turn_makes_the_questions_unusable_that_it_stands_before():
    talk = said("What is it?", " ", "And this?")
    assert unusable(talk, "first") == [(0, None)]
    assert unusable(talk, "last") == [(1, ("turn before it empty", "conversations[1].value has no text"))]
    assert unusable((("gpt", "Hello."), *talk), "each") == [
        (0, None),
        (1, ("turn before it empty", "conversations[2].value has no text")),
    ]
    assert unusable(said("<image>\n", "A bus.", "And this?"), "each") == [
        (0, ("instruction empty", "conversations[0].value has no text")),
        (1, ("turn before it empty", "conversations[0].value has no text")),
    ]


def test_what_stands_before_a_question_has_bounds_for_each_question_repeats_it():
    found = questions(said(*["What is it?"] * (2 * MAX_CONTEXT_TURNS)), "each")
    assert len(found) == MAX_CONTEXT_TURNS
    usable = [one.turn for one in found if one.unusable is None]
    assert usable == list(range(MAX_CONTEXT_TURNS // 2 + 1))
    assert sum(len(one.messages) for one in found) == (MAX_CONTEXT_TURNS // 2 + 1) ** 2
    assert {one.unusable.reason for one in found if one.unusable} == {"too much before it"}
    long = said("x" * MAX_CONTEXT_CHARACTERS, "", "What?")
    assert unusable(said("x" * (MAX_CONTEXT_CHARACTERS - 1), "y", "What?"), "last") == [(1, None)]
    assert unusable(said(*[text + "y" for _, text in long]), "last")[0][1][0] == "too much before it"


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("<image>What is it?", "What is it?"),
        ("<image>\r\nWhat is it?", "What is it?"),
        ("See:\n<image>\nWhat is it?", "See:\nWhat is it?"),
        ("See <image> here", "See  here"),
        ("See:<image>\nWhat?", "See:\nWhat?"),
        ("<image>\n<image>\nWhat?", "What?"),
        ("<im<image>age>What?", "What?"),
        ("  two  spaces, kept \n", "  two  spaces, kept \n"),
        ("What is this photo about'?\n<image>", "What is this photo about'?"),
    ],
)
def test_the_image_token_and_its_newline_go_and_the_question_is_verbatim(text, stripped):
    assert strip_image_token(text) == stripped


@given(st.text(st.sampled_from(list("<image>\r\n a")), max_size=60))
@example("<image>" * 3)
@example("<im<im<image>age>age>" * 2)
def test_no_image_token_is_left_and_other_text_is_untouched(text):
    stripped = strip_image_token(text)
    assert "<image>" not in stripped
    if "<image>" not in text:
        assert stripped == text


@given(
    st.text(st.characters(exclude_characters="<", codec="utf-8"), min_size=1).filter(lambda text: text[0] not in "\r\n")
)
def test_prefix_and_suffix_form_are_one_question(question):
    assert strip_image_token(f"<image>\n{question}") == question
    if question[-1] not in "\r\n":
        assert strip_image_token(f"{question}\n<image>") == question


@pytest.mark.timeout(60)
def test_texts_take_no_longer_for_being_nested_or_stacked():
    depth = 100_000
    assert strip_image_token("<im" * depth + "<image>" + "age>" * depth) == ""
    stacked = "a" + "\u0315" * 40_000 + "\u0300" * 40_000
    (asked,) = questions(said(stacked), "first")
    assert asked.messages[0].text == stacked


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["NFC", "NFKC"]))
def test_the_normal_form_is_unicodes_own(text, form):
    assert to_form(form, text) == unicodedata.normalize(form, text)


def test_thirty_marks_are_put_in_order_and_more_are_left():
    marks = "\u0315\u0300" * (MOST_MARKS // 2)
    assert to_form("NFC", "b" + marks) == unicodedata.normalize("NFC", "b" + marks) != "b" + marks
    assert to_form("NFC", "b" + marks + "\u0300") == "b" + marks + "\u0300"
