import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from m3po_dagster.evaluation.question import BenchmarkError, Question, check_answers, id_field, text_field
from m3po_dagster.evaluation.registry import benchmark, load_questions
from m3po_dagster.evaluation.settings import BenchmarkSettings


def questions(*ids):
    return [Question(name, Path("x.png"), "x.png", "Is there a dog?", "yes") for name in ids]


def test_a_question_is_a_prompt_about_its_image():
    (question,) = questions("random/1")
    prompt = question.prompt()
    assert (prompt.prompt_id, prompt.question, prompt.reference) == ("random/1", "Is there a dog?", "yes")
    assert question.group == "random"


@pytest.mark.parametrize(
    ("ids", "answers", "said"),
    [
        (["a", "b"], {"a": "yes"}, "1 of 2 answers are missing: b"),
        (["a"], {"a": "yes", "z": "no"}, "1 answers belong to no question: z"),
        (["a", "a"], {"a": "yes"}, "1 question ids are duplicates: a"),
        (["a"], {"a": None}, "1 answers are not text: a"),
        ([], {}, "no questions"),
        ([str(n) for n in range(9)], {}, "9 of 9 answers are missing: 0, 1, 2, 3, 4, ..."),
    ],
)
def test_answers_that_do_not_match_are_named(ids, answers, said):
    with pytest.raises(BenchmarkError, match=said):
        check_answers(questions(*ids), answers)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a\ud83d", r"holds '\ud83d', half a surrogate pair, which is no character"),
        ("\udc36 dog", r"holds '\udc36', half a surrogate pair"),
        ("a\0b", r"is 'a\x00b', expected text without NUL"),
    ],
)
def test_what_no_table_can_hold_is_refused_with_its_line(value, said):
    calls = {"question_id": lambda record: id_field(record, "q.jsonl, line 3")}
    calls["image"] = lambda record: text_field(record, "image", "q.jsonl, line 3")
    for key, read in calls.items():
        record = json.loads(json.dumps({key: value}))
        with pytest.raises(BenchmarkError) as error:
            read(record)
        assert str(error.value).startswith(f"q.jsonl, line 3: {key} {said}")
        assert read({key: "a\U0001f436"}) == "a\U0001f436"


def test_the_kind_chooses_the_benchmark(tmp_path):
    adapter = TypeAdapter(BenchmarkSettings)
    given = [
        {"kind": "pope", "labels": {"random": "r.json"}, "image_root": "."},
        {"kind": "mme", "root": "."},
        {"kind": "chair", "path": "c.jsonl", "image_root": "."},
        {"kind": "vizwiz", "annotations": "val.json", "image_root": "."},
    ]
    assert [benchmark(adapter.validate_python(item)).kind for item in given] == ["pope", "mme", "chair", "vizwiz"]
    for bad in (
        {"kind": "vqa", "annotations": "val.json", "image_root": "."},
        given[0] | {"labels": {}},
        given[0] | {"labels": {"hard": "h.json"}},
        {"root": "."},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "c.jsonl").write_text(json.dumps({"question_id": 7, "image": "a.png", "text": "?", "objects": ["dog"]}))
    chair = adapter.validate_python({"kind": "chair", "path": tmp_path / "c.jsonl", "image_root": tmp_path})
    assert [item.question_id for item in load_questions(chair)] == ["7"]
