"""Instruction following: a worked example, what is asked, what a person reads, and errors that name the line."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.ift import Ift
from m3po_dagster.evaluation.question import BenchmarkError
from m3po_dagster.evaluation.settings import IftSettings

ROWS = [
    {
        "question_id": 1,
        "image": "1.png",
        "text": "What is in the image?",
        "constraints": [{"kind": "max_words", "n": 3}, {"kind": "no_commas"}],
    },
    {
        "question_id": "b",
        "image": "1.png",
        "text": "Describe the image.",
        "constraints": [{"kind": "max_words", "n": 3}, {"kind": "include_words", "words": ["red"]}],
    },
    {
        "question_id": 3,
        "image": "2.png",
        "text": "Is it red?",
        "constraints": [{"kind": "one_of", "options": ["Yes", "No"]}],
    },
]
ANSWERS = {"1": "a, b", "b": "Sure:\na red box", "3": "*Yes*"}


def build(folder, *rows, **changed) -> Ift:
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(b"x")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows or ROWS]
    (folder / "ift.jsonl").write_text("\n".join(lines) + "\n")
    return Ift(IftSettings(path=folder / "ift.jsonl", image_root=folder, **changed))


def values(ift, answers):
    return {metric.metric: metric.value for metric in ift.score(ift.load(), answers, resamples=20)}


def test_a_worked_example(tmp_path):
    # 1: two words, but a comma. b: four words, three without the first line. 3: bare only without the asterisks.
    assert values(build(tmp_path), ANSWERS) == {
        "prompt_strict": 0.0,
        "prompt_loose": pytest.approx(100 * 2 / 3),
        "constraint_strict": pytest.approx(100 * 2 / 5),
        "constraint_loose": pytest.approx(100 * 4 / 5),
        "format": 0.0,
        "include_words/constraint_strict": 100.0,
        "include_words/constraint_loose": 100.0,
        "max_words/constraint_strict": 50.0,
        "max_words/constraint_loose": 100.0,
        "no_commas/constraint_strict": 0.0,
        "no_commas/constraint_loose": 0.0,
        "one_of/constraint_strict": 0.0,
        "one_of/constraint_loose": 100.0,
    }


def test_the_counts_of_a_metric(tmp_path):
    metrics = {metric.metric: metric for metric in build(tmp_path).score(build(tmp_path).load(), ANSWERS, resamples=20)}
    assert metrics["prompt_strict"].n == 3 and metrics["constraint_strict"].n == 5 and metrics["format"].n == 2


def test_format_is_over_the_prompts_that_ask_for_one(tmp_path):
    found = values(build(tmp_path), {"1": "red", "b": "one two three four", "3": "yes"})
    assert (found["format"], found["prompt_strict"]) == (100.0, pytest.approx(100 * 2 / 3))


def test_a_set_without_constraints_of_format_has_no_such_metric(tmp_path):
    found = values(build(tmp_path, ROWS[1]), {"b": "red"})
    assert "format" not in found and found["prompt_strict"] == 100.0
    assert not any(map(math.isnan, found.values()))


def test_the_empty_answer_follows_nothing(tmp_path):
    found = values(build(tmp_path), dict.fromkeys(ANSWERS, ""))
    assert set(found.values()) == {0.0}


def test_a_sentence_is_said_for_each_constraint_unless_the_text_says_all(tmp_path):
    said, unsaid = build(tmp_path).load(), build(tmp_path, say_constraints=False).load()
    assert said[0].text == "What is in the image? Use at most 3 words. Do not use any commas."
    assert unsaid[0].text == "What is in the image?"
    assert said[0].expected == unsaid[0].expected and json.loads(said[0].expected)[1] == {"kind": "no_commas"}


def test_a_person_reads_what_is_broken(tmp_path):
    ift = build(tmp_path)
    first, second, _ = ift.load()
    assert ift.reading(first, "red") == "all met"
    assert ift.reading(first, "a, b, c, d") == "broken: Use at most 3 words. Do not use any commas."
    assert ift.reading(second, "Sure:\na red box") == "broken: Use at most 3 words. (met loosely)"


def test_the_notes_say_whose_set_it_is(tmp_path):
    (note,) = build(tmp_path).notes(build(tmp_path).load())
    assert "not the paper's" in note


@given(st.permutations(list(ANSWERS)))
def test_the_order_of_answers_does_not_matter(tmp_path_factory, order):
    ift = build(tmp_path_factory.mktemp("ift"))
    assert values(ift, {key: ANSWERS[key] for key in order}) == values(ift, ANSWERS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROWS[0], "constraints": [{"kind": "max_words"}]}, "line 2: constraints: number 1, n: Field required"),
        (
            {key: value for key, value in ROWS[0].items() if key != "constraints"},
            "line 2: constraints: expected a list",
        ),
        ({**ROWS[0], "text": " "}, "line 2: text"),
        ({**ROWS[0], "image": "3.png"}, "line 2: no image 3.png"),
        ({**ROWS[0], "image": "../x.png"}, "line 2: .*not a path below"),
        ({**ROWS[0], "question_id": "b"}, "line 2: question_id b stands twice"),
        ("{", "line 2: not valid JSON"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path, row, message):
    with pytest.raises(BenchmarkError, match=rf"ift\.jsonl, {message}"):
        build(tmp_path, ROWS[1], row).load()


def test_a_set_of_nothing_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="no questions"):
        build(tmp_path, " ").load()


def test_answers_join_on_ids(tmp_path):
    with pytest.raises(BenchmarkError, match="1 of 3 answers are missing: 3"):
        values(build(tmp_path), {"1": "", "b": ""})
    with pytest.raises(BenchmarkError, match="no rule 'lmms-eval'"):
        build(tmp_path).per_question(build(tmp_path).load(), ANSWERS, "lmms-eval")
