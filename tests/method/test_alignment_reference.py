"""ROUGE-L: against the textbook's recurrence, its published examples' rules, and what it can't score."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llava import tiny_prompts

from m3po_dagster.method.alignment.reference import ReferenceSettings, longest_common_subsequence, words
from m3po_dagster.study import load_study


@pytest.fixture
def prompt(tmp_path):
    return replace(tiny_prompts(tmp_path, 1)[0], reference="The dog's brown, and the cat is black.")


@pytest.fixture
def scorer():
    return ReferenceSettings().build()


def by_the_table(one, other):
    """The recurrence as every textbook has it."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one, start=1):
        for j, b in enumerate(other, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


texts = st.lists(st.sampled_from("abcde"), max_size=90)


@given(texts, texts)
def test_the_common_subsequence_is_that_of_the_table(one, other):
    assert longest_common_subsequence(one, other) == by_the_table(one, other)


@pytest.mark.parametrize(
    ("answer", "precision", "recall"),
    [
        ("The dog's brown, and the cat is black.", 1, 1),
        ("the DOG s brown and the cat is BLACK", 1, 1),
        ("The cat is black.", 1, 4 / 9),
        ("Black is the cat.", 2 / 4, 2 / 9),
        ("Two red birds.", 0, 0),
    ],
)
def test_f1_precision_and_recall(scorer, prompt, answer, precision, recall):
    ((score,),) = scorer.score([(prompt, [answer])])
    assert score.sub_scores == pytest.approx({"reference_precision": precision, "reference_recall": recall})
    mean = 2 * precision * recall / (precision + recall) if precision else 0
    assert score.value == pytest.approx(mean)


def test_words_of_any_script_count():
    assert words("Ein gro\u00dfer Hund, snake_case 3.5!") == ["ein", "grosser", "hund", "snake", "case", "3", "5"]
    assert words("\u041a\u043e\u0448\u043a\u0430 \u0441\u043f\u0438\u0442.") == [
        "\u043a\u043e\u0448\u043a\u0430",
        "\u0441\u043f\u0438\u0442",
    ]


@pytest.mark.parametrize("reference", [None, "", " ... "])
def test_without_a_reference_nothing_is_scored(scorer, prompt, reference):
    rows = scorer.score([(replace(prompt, reference=reference), ["A dog.", ""]), (prompt, ["A dog.", "?!"])])
    assert [[score.reason for score in row] for row in rows] == [
        ["no reference", "no reference"],
        ["scored", "answer has no words"],
    ]


def test_no_image_is_opened_and_no_answer_depends_on_another(scorer, prompt, tmp_path):
    missing = replace(prompt, image_path=tmp_path / "missing.png")
    answers = ["A dog.", "The cat is black.", "The brown dog."]
    together = scorer.score([(prompt, answers), (missing, answers)])
    assert together[0] == together[1]
    assert together[0] == [scorer.score([(prompt, [answer])])[0][0] for answer in answers]


def test_only_the_reference_does_not_look_at_the_image():
    assert not ReferenceSettings().looks_at_image
    assert ReferenceSettings().local_model is None
    for scorer in load_study("studies/easy_scenes.yaml").judge.scorers:
        assert scorer.looks_at_image
