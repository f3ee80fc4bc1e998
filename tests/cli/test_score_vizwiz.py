"""`m3po score vizwiz`: anybody's answers against VizWiz's annotations."""

import json

import pytest
from typer.testing import CliRunner

from m3po_dagster.cli.score import app
from tests.evaluation.vizwiz_files import RECORDS, write_annotations

MEDICINE, BASIL, WHAT, LIGHT = (record["image"] for record in RECORDS)
ANSWERS = [
    {"image": LIGHT, "answer": "Yes"},
    {"image": MEDICINE, "answer": "Night time."},
    {"image": WHAT, "answer": "unanswerable"},
    {"image": BASIL, "answer": "the basil", "question_id": 4},
]


def run(folder, answers, *options, records=RECORDS):
    path = folder / "answers.json"
    path.write_text(answers if isinstance(answers, str) else json.dumps(answers))
    annotations = write_annotations(folder, records)
    call = ["vizwiz", "--answers", str(path), "--annotations", str(annotations), *options]
    return CliRunner().invoke(app, call)


def test_one_json_object_in_per_cent(tmp_path):
    done = run(tmp_path, ANSWERS, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "accuracy": pytest.approx(100 * (1 + 0.9 + 1 + 0) / 4),
        "n": 4,
        "by_answer_type": {"other": pytest.approx(95), "unanswerable": 100, "yes/no": 0},
        "unanswerable_rate": 25,
        "constant_unanswerable": pytest.approx(40),
        "format": pytest.approx(75),
    }


@pytest.mark.parametrize("rule", ["lmms-eval", "vlmevalkit", "evalai"])
def test_the_other_tools_normalise_always(tmp_path, rule):
    found = json.loads(run(tmp_path, ANSWERS, "--json", "--rule", rule).stdout)
    assert found["accuracy"] == pytest.approx(100 * 3.9 / 4) and found["by_answer_type"]["yes/no"] == 100


def test_all_rules_side_by_side(tmp_path):
    found = json.loads(run(tmp_path, ANSWERS, "--json", "--rule", "all").stdout)["rules"]
    assert {rule: one["accuracy"] for rule, one in found.items()} == {
        "official": pytest.approx(72.5),
        "lmms-eval": pytest.approx(97.5),
        "vlmevalkit": pytest.approx(97.5),
        "evalai": pytest.approx(97.5),
    }
    lines = [line.split() for line in run(tmp_path, ANSWERS, "--rule", "all").stdout.splitlines()]
    assert lines[0] == ["per", "cent", "questions", "official", "lmms-eval", "vlmevalkit", "evalai"]
    assert ["accuracy", "4", "72.50", "97.50", "97.50", "97.50"] in lines
    assert ["yes/no", "1", "0.00", "100.00", "100.00", "100.00"] in lines


def test_a_table_for_people(tmp_path):
    lines = [line.split() for line in run(tmp_path, ANSWERS).stdout.splitlines()]
    assert ["accuracy", "4", "72.50"] in lines and ["other", "2", "95.00"] in lines
    assert lines[-1] == ["a", "single", "word", "or", "phrase", "75.00"]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (ANSWERS[:-1], f"1 of 4 answers are missing: {BASIL}"),
        ([*ANSWERS, {"image": "new.jpg", "answer": "x"}], "1 answers belong to no question"),
        ([*ANSWERS, ANSWERS[0]], f"record 5: {LIGHT} is answered in"),
        ([*ANSWERS[:-1], {"image": BASIL}], f"record 4: the answer of {BASIL} is 'None'"),
        ([*ANSWERS[:-1], {"answer": "basil"}], "record 4: image is missing"),
        ({"image": BASIL}, "one JSON array"),
        ("{", "not valid JSON"),
    ],
)
def test_answers_that_do_not_join_are_named(tmp_path, answers, said):
    done = run(tmp_path, answers)
    assert done.exit_code == 1 and said in done.stderr and "answers.json" in done.stderr


def test_a_test_split_has_nothing_to_score_against(tmp_path):
    records = [{"image": record["image"], "question": record["question"]} for record in RECORDS]
    done = run(tmp_path, ANSWERS, records=records)
    assert done.exit_code == 1 and "A test split's are not published" in done.stderr


def test_an_unknown_rule_is_a_usage_error(tmp_path):
    done = run(tmp_path, ANSWERS, "--rule", "mine")
    assert done.exit_code == 2 and "official" in done.stderr
