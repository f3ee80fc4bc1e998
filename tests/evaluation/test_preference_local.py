"""Judged preference by a scorer that is loaded here, and its laws for any judgements."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.evaluation.judged import JUDGEMENTS, judgement, unscored
from m3po_dagster.evaluation.preference import Preference
from m3po_dagster.evaluation.preference_judging import GRADE, SAME, SHOWN_FIRST, SHOWN_SECOND
from m3po_dagster.evaluation.preference_settings import PreferenceSettings
from m3po_dagster.evaluation.question import BenchmarkError, Question
from m3po_dagster.method.alignment.calibration import Linear
from m3po_dagster.world.assessor import ASSESSOR_FOLDER
from m3po_dagster.world.judge import SceneJudgeSettings
from m3po_dagster.world.language import describe
from m3po_dagster.world.scenes import THINGS
from m3po_dagster.world.write import write_world

Local = PreferenceSettings[SceneJudgeSettings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "easy"
    write_world(path, 10, 80)
    return path / "benchmarks/validation"


def preference(folder, **changed) -> Preference:
    judge = SceneJudgeSettings(model=str(ASSESSOR_FOLDER), **changed.pop("scorer", {}))
    return Preference(
        Local(questions=folder / "preference.jsonl", image_root=folder / "images", judge=judge, **changed)
    )


def answers_of(folder) -> tuple[dict[str, str], dict[str, str]]:
    rows = [json.loads(line) for line in (folder / "preference.jsonl").read_text().splitlines()]
    true = {str(row["question_id"]): row["reference"] for row in rows}
    wrong = {
        key: f"{text} {describe([next(thing for thing in THINGS if str(thing) not in text)])}"
        for key, text in true.items()
    }
    return true, wrong


def values(benchmark: Preference, table: pa.Table, answers: dict[str, str]) -> dict[str, float]:
    return {one.metric: one.value for one in benchmark.judged(table).score(benchmark.load(), answers, resamples=20)}


def test_the_assessor_of_the_embedded_world_prefers_what_is_true(folder):
    true, wrong = answers_of(folder)
    benchmark, told = preference(folder), []
    questions = benchmark.load()
    table = benchmark.judge_answers(questions, true, None, wrong, advance=lambda *done: told.append(done))
    assert told == [(16, 20), (20, 20)] and len(table) == 60 and table.schema == JUDGEMENTS
    found = values(benchmark, table, true)
    mirrored = values(benchmark, benchmark.judge_answers(questions, wrong, None, true), wrong)
    assert found["win_rate"] >= 95 and mirrored["win_rate"] == pytest.approx(100 - found["win_rate"])
    assert found["score"] > 4.8 > mirrored["score"] > 1
    for one in (found, mirrored):
        assert (one["consistency"], one["first_position_rate"], one["coverage"]) == (100, 50, 100)
    (note,) = benchmark.notes(questions)
    assert "by construction" in note and "within 0.05" in note


def test_grade_and_comparison_are_made_of_the_calibrated_value(folder):
    true, wrong = answers_of(folder)
    plain = preference(folder)
    questions = plain.load()[:6]
    keys = [one.question_id for one in questions]
    true, wrong = ({key: given[key] for key in keys} for given in (true, wrong))
    mapped = preference(folder, scorer={"calibration": Linear(low=-1, high=1)})
    scores = plain.settings.judge.build().score([(one.prompt(), [true[one.question_id]]) for one in questions])
    for benchmark, value in ((plain, lambda raw: raw), (mapped, lambda raw: (raw + 1) / 2)):
        rows = benchmark.judge_answers(questions, true, None).to_pylist()
        assert [row["component"] for row in rows] == [GRADE] * 6
        for row, (score,) in zip(rows, scores, strict=True):
            assert row["score"] == pytest.approx(1 + 4 * value(score.value), abs=1e-5) and row["words"] == score.words
    # A margin above every difference leaves ties alone.
    wide = preference(folder, margin=0.9).judge_answers(questions, true, None, wrong).to_pylist()
    assert {row["score"] for row in wide if row["component"] != GRADE} == {0.5}
    assert mapped.judge_identity() != plain.judge_identity() != preference(folder, margin=0.9).judge_identity()


def test_what_the_scorer_can_not_score_is_unscored_with_its_reason_and_an_empty_answer_is_the_worst(folder):
    true, _ = answers_of(folder)
    benchmark = preference(folder)
    questions = benchmark.load()
    odd, empty = questions[0].question_id, questions[1].question_id
    table = benchmark.judge_answers(questions, {**true, odd: "Hm, nice.", empty: ""}, None, true)
    rows = {(row["question_id"], row["component"]): row for row in table.to_pylist()}
    assert rows[odd, GRADE]["score"] is None and rows[odd, GRADE]["status"] == "answer not understood"
    assert rows[odd, SHOWN_SECOND]["status"] == "answer not understood"
    assert rows[empty, GRADE]["score"] == 1 and rows[empty, SHOWN_FIRST]["score"] == 0
    assert rows[questions[2].question_id, SAME]["score"] == 0.5
    found = values(benchmark, table, {**true, odd: "Hm, nice.", empty: ""})
    assert found["coverage"] == found["comparison_coverage"] == pytest.approx(95)
    # The other way round the reason is the other answer's.
    theirs = benchmark.judge_answers(questions, true, None, {**true, odd: "Hm, nice."}).to_pylist()
    assert {row["status"] for row in theirs if row["component"] == SHOWN_FIRST} == {"answer not understood"}


QUESTIONS = [Question(str(i), None, f"{i % 4}.png", "t", None) for i in range(8)]
ANSWERS = {one.question_id: "a" for one in QUESTIONS}
verdicts = st.sampled_from([0.0, 0.5, 1.0, None])
judged = st.tuples(st.sampled_from([1.0, 2.0, 3.5, 5.0, None]), verdicts, verdicts, st.booleans())


def table_of(rows) -> pa.Table:
    made = []
    for question, (grade, first, second, same) in zip(QUESTIONS, rows, strict=True):
        given = {GRADE: grade} | ({SAME: 0.5} if same else {SHOWN_FIRST: first, SHOWN_SECOND: second})
        for component, score in given.items():
            key = question.question_id
            made.append(unscored(key, component, "no") if score is None else judgement(key, component, score))
    return pa.Table.from_pylist(made, JUDGEMENTS)


def counted(rows, names) -> dict[str, float] | None:
    """None where nothing was scored at all."""
    benchmark = Preference(settings=None).judged(table_of(rows))
    try:
        metrics = benchmark.score(QUESTIONS, ANSWERS, resamples=2)
    except BenchmarkError as error:
        assert "scored nothing" in str(error)
        return None
    return {one.metric: one.value for one in metrics if one.metric in names}


@settings(max_examples=150, deadline=None)
@given(st.lists(judged, min_size=8, max_size=8), st.permutations(range(8)))
def test_the_laws_of_the_figures(rows, order):
    names = ("score", "win_rate", "wins", "ties", "losses", "consistency", "tie_rate", "first_position_rate")
    found = counted(rows, names)
    scored = [one for one in rows if one[0] is not None]
    compared = [one for one in rows if one[3] or None not in one[1:3]]
    assert (found is None) == (not scored or not compared)
    if found is None:
        return
    # Against a plain recount.
    outcomes = [0.5 if same or first != second else first for _, first, second, same in compared]
    assert found["score"] == pytest.approx(sum(one[0] for one in scored) / len(scored)) and 1 <= found["score"] <= 5
    assert found["win_rate"] == pytest.approx(100 * sum(outcomes) / len(outcomes))
    assert found["wins"] == pytest.approx(100 * outcomes.count(1.0) / len(outcomes))
    assert found["wins"] + found["ties"] + found["losses"] == pytest.approx(100)
    assert all(0 <= value <= 100 for value in found.values())
    # The other side's view: what was shown first is now shown second.
    flip = {1.0: 0.0, 0.5: 0.5, 0.0: 1.0, None: None}
    other = counted([(grade, flip[second], flip[first], same) for grade, first, second, same in rows], names)
    assert other["win_rate"] == pytest.approx(100 - found["win_rate"]) and other["wins"] == found["losses"]
    for name in ("consistency", "tie_rate", "first_position_rate"):
        assert other[name] == pytest.approx(found[name])
    assert counted([rows[i] for i in order], names) == pytest.approx(found)


def test_judgements_must_be_there_once_and_for_every_answer():
    whole = table_of([(3.0, 1.0, 1.0, False)] * 8)
    benchmark = Preference(settings=None)
    with pytest.raises(BenchmarkError, match="not judged yet"):
        benchmark.per_question(QUESTIONS, ANSWERS)
    with pytest.raises(BenchmarkError, match="1 answers were not judged, the first: 7"):
        benchmark.judged(whole.slice(0, 21)).per_question(QUESTIONS, ANSWERS)
    with pytest.raises(BenchmarkError, match="1 answers were not compared, the first: 7"):
        benchmark.judged(whole.slice(0, 22)).per_question(QUESTIONS, ANSWERS)
    with pytest.raises(BenchmarkError, match="judged twice"):
        benchmark.judged(pa.concat_tables([whole, whole])).per_question(QUESTIONS, ANSWERS)
    with pytest.raises(BenchmarkError, match="has no rule 'lmms-eval'"):
        benchmark.judged(whole).per_question(QUESTIONS, ANSWERS, "lmms-eval")
