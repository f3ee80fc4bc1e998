"""How a judge's reply is read: what counts, what is forgiven, and that nothing is guessed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.method.alignment.judge_reply import Grades, Usage, mean_grade, read_reply, read_usage
from m3po_dagster.method.alignment.judge_request import ASPECTS
from tests.loopback import Reply
from tests.served_judge import completion, entry

IDS = ["A", "B", "C"]
ENTRIES = dict.fromkeys(IDS, Grades)
WHOLE = {"seen": "a wall", "grades": [entry("B", 1, 2, 3, "b"), entry("A", 5, 4, 2, "a"), entry("C", 3, 3, 3)]}


def body(reply: Reply) -> str:
    return reply.body.decode("utf-8", errors="replace")


def said(value: object) -> str:
    return body(completion(value if isinstance(value, str) else json.dumps(value)))


def with_entries(*entries: object) -> str:
    return said({"seen": "", "grades": list(entries)})


def test_grades_are_found_by_id_whatever_their_order():
    reading = read_reply(said(WHOLE), ENTRIES)
    assert {key: [grades.of(aspect) for aspect in ASPECTS] for key, grades in reading.grades.items()} == {
        "A": [5, 4, 2],
        "B": [1, 2, 3],
        "C": [3, 3, 3],
    }
    assert reading.grades["A"].evidence == "a" and not reading.problems and not reading.declined


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(WHOLE)}\n```",
        f"Sure, here are {{my}} grades: {json.dumps(WHOLE)} Let me know!",
        f'{{"thinking": "..."}}\n{json.dumps(WHOLE)}',
        json.dumps(WHOLE, indent=2),
    ],
)
def test_a_fence_and_prose_around_one_object_are_forgiven(text):
    assert set(read_reply(said(text), ENTRIES).grades) == set(IDS)


@pytest.mark.parametrize(
    ("reply", "problem", "told"),
    [
        (said("not JSON"), "reply can't be read", "not JSON"),
        (said("[5, 5, 5]"), "reply can't be read", "[5"),
        (said('{"seen": "", "grades": 3}'), "reply can't be read", "3"),
        (said(json.dumps(WHOLE)[:-20]), "reply can't be read", "a wall"),
        (said(json.dumps(WHOLE) * 2), "reply can't be read", "a wall"),
        (said("{" * 5000), "reply can't be read", "{{"),
        (said("[" * 100_000), "reply can't be read", "[["),
        (body(completion(None, refusal="I won't.")), "refused", "I won't."),
        (body(completion("{}", finish_reason="content_filter")), "refused", "{}"),
        (body(completion(json.dumps(WHOLE)[:40], finish_reason="length")), "reply cut off", "a wall"),
        (body(completion(None)), "empty reply", ""),
        (body(completion(" \n")), "empty reply", ""),
        ('{"choices": []}', "empty reply", ""),
        ('{"choices": null}', "reply can't be read", ""),
        ('{"choices": [{"message": 3}]}', "reply can't be read", ""),
        ("<html>maintenance</html>", "reply can't be read", ""),
        ('{"choices": [{"mess', "reply can't be read", ""),
        (b"\xff\xfe\x00".decode(errors="replace"), "reply can't be read", ""),
        ("", "reply can't be read", ""),
    ],
)
def test_a_reply_without_grades_gives_each_id_its_reason(reply, problem, told):
    reading = read_reply(reply, ENTRIES)
    assert reading.problems == dict.fromkeys(IDS, problem) and not reading.grades
    assert told in reading.said and reading.declined == (problem == "refused")


@pytest.mark.parametrize(
    ("spoiled", "problem"),
    [
        (entry("A", 0, 5, 5), "grade out of range"),
        (entry("A", 5, 6, 5), "grade out of range"),
        (entry("A", 5, 5, -1), "grade out of range"),
        (entry("A", 5, 5, 10**30), "grade out of range"),
        (entry("A", 4.5, 5, 5), "reply can't be read"),
        (entry("A", 5.0, 5, 5), "reply can't be read"),
        (entry("A", "5", 5, 5), "reply can't be read"),
        (entry("A", True, 5, 5), "reply can't be read"),
        (entry("A", None, 5, 5), "reply can't be read"),
        (entry("A", float("nan"), 5, 5), "reply can't be read"),
        (entry("A", 5, 5, 5, words="\ud800"), "reply can't be read"),
        ({"id": "A", "evidence": "", "relevance": 5, "accuracy": 5}, "reply can't be read"),
        ({"id": "A", "relevance": 5, "accuracy": 5, "adherence": 5}, "reply can't be read"),
        ({"id": 1, **entry("A", 5, 5, 5)} | {"id": 1}, "no grade in the reply"),
        (entry("D", 5, 5, 5), "no grade in the reply"),
        ("A", "no grade in the reply"),
        (None, "no grade in the reply"),
    ],
)
def test_one_spoiled_entry_spoils_its_own_id_alone(spoiled, problem):
    reading = read_reply(with_entries(spoiled, entry("B", 3, 3, 3), entry("C", 2, 2, 2)), ENTRIES)
    assert set(reading.grades) == {"B", "C"} and reading.problems == {"A": problem}


def test_an_id_graded_twice_has_no_grade():
    reading = read_reply(with_entries(*(entry(key, 4, 4, 4) for key in "AABC")), ENTRIES)
    assert set(reading.grades) == {"B", "C"} and reading.problems == {"A": "graded twice in the reply"}


def test_ids_nobody_asked_for_are_left_aside():
    reading = read_reply(with_entries(*(entry(key, 4, 4, 4) for key in "ABCXYZ")), ENTRIES)
    assert set(reading.grades) == set(IDS) and not reading.problems


def test_tokens_are_those_the_endpoint_counts():
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 7}}
    assert read_usage(body(completion("", usage=usage))) == Usage(10, 7, 3)
    assert read_usage(body(completion("", usage={"prompt_tokens": 10, "prompt_tokens_details": None}))) == Usage(10)
    for none in (body(completion("")), '{"usage": {"prompt_tokens": "many"}}', "<html>", ""):
        assert read_usage(none) == Usage()


def test_the_mean_grade_spans_0_to_1():
    assert [mean_grade([1, 1, 1]), mean_grade([3, 3, 3]), mean_grade([5, 5, 5])] == [0.0, 0.5, 1.0]
    assert mean_grade([5, 4, 2]) == pytest.approx(((5 + 4 + 2) / 3 - 1) / 4)


grade = st.one_of(st.integers(-2, 8), st.floats(), st.text(max_size=5), st.none(), st.booleans())
entries = st.fixed_dictionaries(
    {"id": st.sampled_from([*IDS, "D", 1, None])},
    optional={"evidence": st.text(max_size=5), **dict.fromkeys(ASPECTS, grade)},
)


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=80).map(lambda raw: raw.decode(errors="replace")),
        st.text(max_size=80).map(said),
        st.lists(entries, max_size=6).map(lambda given: with_entries(*given)),
        st.integers(0, 300).map(lambda end: said(json.dumps(WHOLE)[:end])),
    )
)
def test_no_reply_breaks_the_reading_and_every_id_has_grades_or_a_problem(reply):
    reading = read_reply(reply, ENTRIES)
    assert set(reading.grades) | set(reading.problems) == set(IDS)
    assert not set(reading.grades) & set(reading.problems)
    for grades in reading.grades.values():
        assert {type(grades.of(aspect)) for aspect in ASPECTS} == {int}
        assert {grades.of(aspect) for aspect in ASPECTS} <= {1, 2, 3, 4, 5}
