"""The probe of a served judge: what it costs, what moves it, and what must not."""

import json

import pyarrow as pa
import pytest

from m3po_dagster.method.alignment.llm_judge import LlmJudgeSettings
from m3po_dagster.method.alignment.mas import MasSettings
from m3po_dagster.method.alignment.probe import CASES, N_CASES, changed, picture, probe, revisions
from m3po_dagster.method.endpoint import EndpointError
from m3po_dagster.storage.tables import PROBE
from m3po_dagster.study import JudgeSettings
from m3po_dagster.world.judge import SceneJudgeSettings
from tests.served_judge import Reply, ServedJudge, completion, graded

LEFT = CASES["shading"][1][2]


def asked(judge) -> pa.Table:
    """The probe's answers in the table that keeps them."""
    return pa.Table.from_pylist(probe(judge), schema=PROBE.schema)


@pytest.fixture
def served():
    with ServedJudge() as judge:
        yield judge


def scorer(served: ServedJudge, **changed) -> LlmJudgeSettings:
    return LlmJudgeSettings(**{"model": served.model, "base_url": served.base_url, "max_retries": 0, **changed})


def judge_of(*scorers, repeats: int = 3) -> JudgeSettings:
    return JudgeSettings(scorers=scorers, probe_repeats=repeats)


def rows_of(table, case: str) -> list[dict]:
    return [row for row in table.to_pylist() if row["case"] == case]


@pytest.mark.parametrize(("group_size", "requests"), [(1, 12), (2, 8), (8, 4)])
@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_every_case_is_asked_as_often_as_the_study_says(served, repeats, group_size, requests):
    table = asked(judge_of(scorer(served, group_size=group_size), repeats=repeats))
    assert served.requests == requests * repeats and N_CASES == 12
    assert set(served.asked.values()) == {repeats}
    assert table.schema.equals(PROBE.schema) and len(table) == N_CASES
    assert len({(row["scorer"], row["case"]) for row in table.to_pylist()}) == N_CASES
    assert set(table["status"].to_pylist()) == {"scored"}


def test_a_right_answer_stands_above_a_wrong_one_and_every_image_is_sent(served):
    table = asked(judge_of(scorer(served), repeats=1))
    (right,), (wrong,) = rows_of(table, "halves:right"), rows_of(table, "halves:wrong")
    assert right["value"] == 1.0 > wrong["value"]
    assert json.loads(right["sub_scores"]) == {
        f"llm_judge_{name}": 5 for name in ("relevance", "accuracy", "adherence")
    }
    assert len({received.image for received in served.received}) == len(CASES)


def test_the_same_model_answers_the_same_and_a_changed_one_does_not(served):
    judge = judge_of(scorer(served))
    before = asked(judge)
    assert asked(judge).equals(before)
    served.revision = 2
    after = asked(judge)
    assert not after.equals(before) and after["case"].equals(before["case"])
    served.revision = 1
    assert asked(judge).equals(before)


def test_words_and_one_stray_grade_are_not_a_new_model(served):
    judge = judge_of(scorer(served, group_size=1))
    before = asked(judge)
    (row,) = rows_of(before, "shading:wrong")
    grades = [int(grade) for grade in json.loads(row["sub_scores"]).values()]
    accuracy, adherence, relevance = grades  # its keys are sorted
    served.instead[LEFT] = [graded(relevance, accuracy, adherence, "said otherwise"), graded(1, 5, 1, "a stray one")]
    assert asked(judge).equals(before) and not served.instead[LEFT]
    served.instead[LEFT] = [graded(1, 5, 1)] * 2
    assert not asked(judge).equals(before)


def test_a_stray_refusal_is_no_change_and_a_standing_one_is(served):
    judge = judge_of(scorer(served, group_size=1))
    before = asked(judge)
    served.instead[LEFT] = [completion(None, refusal="no")]
    assert asked(judge).equals(before)
    served.instead[LEFT] = [completion(None, refusal="no")] * 2
    (row,) = rows_of(asked(judge), "shading:wrong")
    assert (row["value"], row["sub_scores"], row["status"]) == (None, None, "refused")


def test_a_revision_is_what_one_scorer_was_found_to_answer(served):
    judge = judge_of(scorer(served, name="a"), scorer(served, name="b"))
    before = revisions(probe(judge))
    # What a study calls the scorer is no part of what it answers.
    assert set(before) == {"a", "b"} and before["a"] == before["b"]
    assert revisions(probe(judge)) == before
    rows = probe(judge)
    assert revisions(reversed(rows)) == before
    (row,) = (row for row in rows if (row["scorer"], row["case"]) == ("a", "shading:wrong"))
    row["sub_scores"] = None
    after = revisions(rows)
    assert after["a"] != before["a"] and after["b"] == before["b"]


def test_wavering_by_a_step_here_and_there_is_the_same_judge(served):
    before = probe(judge_of(scorer(served)))

    def moved(**steps: int) -> list[dict]:
        rows = json.loads(json.dumps(before))
        for case, step in steps.items():
            row = next(row for row in rows if row["case"] == case.replace("_", ":"))
            grades = json.loads(row["sub_scores"])
            name = max(grades, key=grades.get)
            row["sub_scores"] = json.dumps(grades | {name: grades[name] - step})
        return rows

    assert changed(before, before, 0.0) == "" == changed(before, reversed(before), 0.0)
    assert changed(before, moved(bars_right=1, halves_right=1, shapes_right=1), 0.1) == ""  # 3 of 36
    assert "1 of 36 grades moved" in changed(before, moved(bars_right=1), 0.0)
    four = moved(bars_right=1, halves_right=1, shapes_right=1, shading_wrong=1)
    assert "4 of 36 grades moved, by 0.11 on average (probe_tolerance is 0.1)" in changed(before, four, 0.1)
    assert "by 2 at most" in changed(before, moved(bars_right=2), 1.0)
    silent = moved()
    silent[0] |= {"value": None, "sub_scores": None, "status": "refused"}
    assert "was scored, is refused" in changed(before, silent, 4.0)
    assert "is asked no more" in changed(before, before[1:], 4.0)
    assert "was not asked before" in changed(before[1:], before, 4.0)
    served.revision = 2
    assert changed(before, probe(judge_of(scorer(served))), 0.1)


def test_only_served_scorers_are_asked_and_nothing_local_is_loaded(served):
    nowhere = SceneJudgeSettings(model="local-dir:nowhere")
    table = asked(judge_of(scorer(served, name="b"), nowhere, scorer(served, name="a"), repeats=1))
    assert table["scorer"].to_pylist() == ["a"] * N_CASES + ["b"] * N_CASES
    assert served.requests == 2 * len(CASES)


def test_a_judge_without_a_served_scorer_gives_an_empty_table():
    table = asked(MasSettings[SceneJudgeSettings](scorers=[SceneJudgeSettings(model="local-dir:nowhere")]))
    assert len(table) == 0 and table.schema.equals(PROBE.schema)


def test_an_outage_is_an_error_and_no_new_judge(served):
    served.up = False
    with pytest.raises(EndpointError, match=rf"{served.base_url}.*503"):
        asked(judge_of(scorer(served)))
    served.up = True
    assert len(asked(judge_of(scorer(served)))) == N_CASES


def test_an_endpoint_that_judges_nothing_is_an_error(served):
    for answer in (answer for _, answers in CASES.values() for answer in answers):
        served.instead[answer] = [Reply(400, b'{"error": {"message": "no JSON schema here"}}')]
    with pytest.raises(EndpointError, match=rf"{served.base_url}.*none of the 12.*HTTP 400\): no JSON schema here"):
        asked(judge_of(scorer(served), repeats=1))


def test_the_pictures_are_pinned():
    import hashlib

    digest = hashlib.sha256(b"".join(picture(name).tobytes() for name in sorted(CASES))).hexdigest()
    assert digest == "333895fe976b5249ba26c0a2a11abfd67959efe1d2558ffed9f687c7ecfd8938"
    with pytest.raises(KeyError, match="no probe image"):
        picture("other")
