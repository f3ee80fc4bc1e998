"""Checks of the form of answers: POPE's own rule reads it, the base model's answers are what it is compared with."""

import json

import pyarrow as pa
import pytest

from m3po_dagster.assets.answer_checks import answer_checks, answer_format, length_drift
from m3po_dagster.evaluation.chair import Chair
from m3po_dagster.evaluation.pope import Pope
from m3po_dagster.evaluation.settings import ChairSettings, PopeSettings
from m3po_dagster.storage.tables import ANSWERS, SCORES

N = 20


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Twenty yes-or-no questions and twenty descriptions to ask for."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "x.jpg").write_bytes(b"x")
    pope = [{"question_id": i, "image": "x.jpg", "text": f"Is there a {i}?", "label": "yes"} for i in range(N)]
    chair = [{"question_id": i, "image": "x.jpg", "text": "Describe.", "objects": ["dog"]} for i in range(N)]
    (folder / "pope.json").write_text("\n".join(map(json.dumps, pope)))
    (folder / "chair.jsonl").write_text("\n".join(map(json.dumps, chair)))
    return {
        "pope": Pope(PopeSettings(labels={"random": folder / "pope.json"}, image_root=folder)),
        "chair": Chair(ChairSettings(path=folder / "chair.jsonl", image_root=folder)),
    }


def answered(suite, benchmark, texts, seed=0):
    """Answers to a benchmark, a token a word and the end."""
    questions = suite[benchmark].load()
    rows = [
        {
            "seed": seed,
            "benchmark": benchmark,
            "question_id": question.question_id,
            "image_uri": question.image_uri,
            "question": question.text,
            "expected": question.expected,
            "answer": text,
            "n_tokens": len(text.split()) + 1,
        }
        for question, text in zip(questions, texts, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=ANSWERS.schema)


def checked(suite, base, *seeds):
    """Both checks of a recipe whose seeds gave these answers, (to POPE, to CHAIR) each."""
    questions = {name: item.load() for name, item in suite.items()}
    answers, rows = [], []
    for seed, texts in enumerate(seeds):
        for name, given in zip(suite, texts, strict=True):
            answers.append(answered(suite, name, given, seed))
            by_id = dict(zip([one.question_id for one in questions[name]], given, strict=True))
            rows += [
                {"recipe": "r", "seed": seed, "benchmark": name, "rule": "official"}
                | {field: getattr(one, field) for field in ("metric", "value", "n", "ci_low", "ci_high")}
                for one in suite[name].score(questions[name], by_id, resamples=20)
            ]
    theirs = {name: answered(suite, name, given) for name, given in zip(suite, base or (), strict=False)}
    scores = pa.Table.from_pylist(rows, schema=SCORES.schema)
    return answer_checks(suite, questions, scores, pa.concat_tables(answers), theirs)


YES, DOG = ["Yes, there is."] * N, ["A dog on grass."] * N


def losing(count):
    return ["It depends."] * count + YES[count:]


def test_the_same_answers_as_base_pass(suite):
    form, length = checked(suite, (YES, DOG), (YES, DOG), (YES, DOG))
    assert form.passed and form.figures == {"pope, seed 0": 100, "pope, seed 1": 100}
    assert length.passed and length.figures == {"chair, seed 0": 1, "chair, seed 1": 1}
    assert not form.blocking and not length.blocking


@pytest.mark.parametrize(("base", "ours", "passed"), [(0, 1, True), (0, 2, False), (1, 2, True), (2, 3, False)])
def test_form_must_be_kept_for_nine_in_ten_and_within_five_points_of_base(suite, base, ours, passed):
    form, _ = checked(suite, (losing(base), DOG), (YES, DOG), (losing(ours), DOG))
    assert form.passed is passed
    assert form.figures["pope, seed 1"] == pytest.approx(100 * (N - ours) / N)
    assert f"{-100 * (ours - base) / N:+.1f} points in pope, seed 1" in form.description


def test_the_base_model_is_compared_with_nothing(suite):
    form, length = checked(suite, None, (losing(1), DOG))
    assert form.passed and "against base" not in form.description
    assert length.passed and "nothing to compare" in length.description
    form, _ = checked(suite, None, (losing(3), DOG))
    assert not form.passed


@pytest.mark.parametrize(
    ("words", "passed"), [(1, False), (3, True), (5, True), (8, True), (9, False)], ids=lambda value: str(value)
)
def test_length_of_open_answers_within_a_factor_of_base(suite, words, passed):
    """Base takes five words and the end."""
    base = ["a dog on the grass"] * N
    _, length = checked(suite, (YES, base), (YES, base), (YES, [" ".join(["dog"] * words)] * N))
    assert length.passed is passed
    assert length.figures == {"chair, seed 0": 1, "chair, seed 1": pytest.approx((words + 1) / 6)}


def test_short_answers_to_yes_or_no_are_no_drift(suite):
    form, length = checked(suite, (YES, DOG), (["Yes"] * N, DOG))
    assert form.passed and length.passed and set(length.figures) == {"chair, seed 0"}


def test_without_such_benchmarks_there_is_nothing_to_check(suite):
    empty = SCORES.schema.empty_table()
    assert answer_format(empty, [], {}).passed
    yes = answered(suite, "pope", YES)
    assert "no open question" in length_drift(yes, [], {"pope": yes}).description
