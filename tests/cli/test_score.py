"""`m3po score` as a person and as a script use it: what it prints, its exit codes, and every refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner, Result

from m3po_dagster.cli.score import app
from m3po_dagster.cli.score_rules import ALL, YesNoRule
from m3po_dagster.evaluation.rules.yes_no import MME_RULES, POPE_RULES

CATEGORIES = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
POPE_KEYS = ["accuracy", "precision", "recall", "f1", "yes_ratio", "n"]


@pytest.fixture
def mme(tmp_path: Path) -> Path:
    """14 files of two images; the answers are right, with a full stop."""
    folder = tmp_path / "results"
    folder.mkdir()
    for category in CATEGORIES:
        lines = [f"{n}.jpg\tIs it {what}?\t{what}\t{what}.\n" for n in range(2) for what in ("Yes", "No")]
        (folder / f"{category}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def pope(tmp_path: Path) -> tuple[Path, Path]:
    """Four answers, right with a full stop, and their labels."""
    labels, answers = tmp_path / "coco_pope_random.json", tmp_path / "answers.jsonl"
    truth = ["yes", "no"] * 2
    labels.write_text(
        "\n".join(
            json.dumps({"question_id": n, "image": "a", "text": "?", "label": one}) for n, one in enumerate(truth)
        )
    )
    answers.write_text(
        "\n".join(json.dumps({"question_id": n, "answer": f"{one.title()}."}) for n, one in enumerate(truth))
    )
    return answers, labels


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object) -> dict:
    """The JSON object; of a run that is not the whole release the notes stand on standard error, and nothing else."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    assert all(line.startswith("note: ") for line in result.stderr.splitlines())
    return json.loads(result.stdout)


def rows(*arguments: object) -> list[list[str]]:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return [line.split() for line in result.stdout.splitlines()]


def refused(status: int, *arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    return " ".join(result.stderr.replace("│", " ").split())


def test_the_option_offers_each_rule_and_all_of_them():
    (choices,) = (get_args(item) for item in get_args(YesNoRule)[:1])
    assert choices == (*MME_RULES, ALL) == (*POPE_RULES, ALL)


def test_mme_prints_one_json_object(mme):
    found = run_json("mme", mme)
    assert list(found) == ["perception", "cognition", "total", "categories"]
    assert (found["perception"], found["cognition"], found["total"]) == (2000, 800, 2800)
    assert found["categories"] == {name: {"acc": 1, "acc_plus": 1, "score": 200} for name in CATEGORIES}
    (mme / "OCR.txt").unlink()
    assert run_json("mme", mme)["missing"] == ["OCR"]


@pytest.mark.parametrize("options", [[], ["--rule", "all"]])
def test_json_of_an_incomplete_mme_says_so_on_standard_error(mme, options):
    (mme / "OCR.txt").unlink()
    notes = [line for line in run("mme", mme, *options).stdout.splitlines() if line.startswith("note: ")]
    result = run("mme", mme, *options, "--json")
    assert result.stderr.splitlines() == notes
    assert notes[0] == "note: perception is the sum of 9 of 10 categories; missing: OCR"
    assert notes[1].startswith("note: not the number of questions of MME's release: existence 4 of 60")
    json.loads(result.stdout)


def test_mme_prints_a_table_with_its_notes(mme):
    (mme / "OCR.txt").unlink()
    printed = rows("mme", mme)
    assert printed[0] == ["category", "questions", "acc", "acc+", "score"]
    assert ["existence", "4", "1.0000", "1.0000", "200.00"] in printed
    assert printed[15:18] == [["perception", "1800.00"], ["cognition", "800.00"], ["total", "2600.00"]]
    assert ["starts", "with", "yes", "or", "no,", "%", "100.00"] in printed
    assert " ".join(printed[-2]) == "note: perception is the sum of 9 of 10 categories; missing: OCR"


def test_pope_prints_one_json_object_for_one_split_and_for_several(pope, tmp_path):
    answers, labels = pope
    assert run("pope", "--answers", answers, "--labels", labels, "--json").stderr == ""
    found = run_json("pope", "--answers", answers, "--labels", labels)
    assert list(found) == POPE_KEYS
    assert found == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5, "n": 4}
    other = labels.rename(tmp_path / "coco_pope_popular.json")
    labels.write_text(other.read_text().replace('"yes"', '"no"'))
    found = run_json("pope", *("--answers", answers, "--answers", answers), *("--labels", labels, "--labels", other))
    assert list(found["splits"]) == ["coco_pope_random", "coco_pope_popular"]
    assert [one["accuracy"] for one in found["splits"].values()] == [0.5, 1]
    assert (list(found["mean"]), found["mean"]["accuracy"], found["mean"]["n"]) == (POPE_KEYS, 0.75, 8)


def test_pope_prints_a_table(pope):
    answers, labels = pope
    assert rows("pope", "--answers", answers, "--labels", labels) == [
        ["per", "cent", "accuracy", "precision", "recall", "F1", "yes-ratio", "format", "n"],
        ["coco_pope_random", "100.00", "100.00", "100.00", "100.00", "50.00", "100.00", "4"],
    ]


def test_a_rule_by_name_and_all_rules_side_by_side(mme, pope):
    answers, labels = pope
    asked = ("pope", "--answers", answers, "--labels", labels)
    for path in mme.iterdir():
        path.write_text(path.read_text().replace("\tYes.", "\tY.").replace("\tNo.", "\tN."))
    mme_totals = {rule: run_json("mme", mme, "--rule", rule)["total"] for rule in MME_RULES}
    pope_accuracy = {rule: run_json(*asked, "--rule", rule)["accuracy"] for rule in POPE_RULES}
    assert mme_totals == {"official": 0, "lmms-eval": 2800, "vlmevalkit": 0}
    assert pope_accuracy == {"official": 1, "lmms-eval": 0, "vlmevalkit": 1}
    both = run_json("mme", mme, "--rule", "all"), run_json(*asked, "--rule", "all")
    assert [list(found) for found in both] == [["rules"], ["rules"]]
    assert {rule: one["total"] for rule, one in both[0]["rules"].items()} == mme_totals
    assert {rule: one["accuracy"] for rule, one in both[1]["rules"].items()} == pope_accuracy
    printed = rows("mme", mme, "--rule", "all")
    assert printed[0] == ["category", "questions", "official", "lmms-eval", "vlmevalkit"]
    assert ["total", "0.00", "2800.00", "0.00"] in printed
    printed = rows(*asked, "--rule", "all")
    assert ["coco_pope_random", "accuracy", "100.00", "0.00", "100.00"] in printed
    assert ["coco_pope_random", "format", "100.00", "100.00", "100.00"] in printed


def test_bad_files_are_exit_code_1_and_named(mme, pope, tmp_path):
    answers, labels = pope
    with open(mme / "OCR.txt", "a") as file:
        file.write("7.jpg\tIs it?\tYes\tYes\n")
    assert (
        refused(1, "mme", mme) == f"error: {mme / 'OCR.txt'}: MME asks 2 questions an image, but 7.jpg has 1 (line 5)"
    )
    assert "no such folder" in refused(1, "mme", tmp_path / "none", "--json")
    with open(answers, "a") as file:
        file.write('\n{"question_id": 9, "answer": "Yes"}')
    said = refused(1, "pope", "--answers", answers, "--labels", labels)
    assert f"{answers}: 1 answers belong to no question of {labels}: 9 ({answers}, line 5)" in said
    assert "no such file" in refused(1, "pope", "--answers", tmp_path / "none", "--labels", labels)


def test_usage_errors_are_exit_code_2(mme, pope):
    answers, labels = pope
    assert "'evalai' is not one of 'official', 'lmms-eval', 'vlmevalkit'" in refused(2, "mme", mme, "--rule", "evalai")
    assert "--labels" in refused(2, "pope", "--answers", answers)
    pair = ("--answers", answers, "--labels", labels)
    assert "2 --answers for 1 --labels" in refused(2, "pope", *pair, "--answers", answers)
    assert "several files are called coco_pope_random" in refused(2, "pope", *pair, *pair)


@pytest.mark.parametrize("options", [["--json"], ["--rule", "all"]])
def test_scoring_loads_neither_dagster_nor_torch(mme, options):
    code = (
        "import sys; from m3po_dagster.cli.score import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "loaded = {'dagster', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "mme", str(mme), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "2800.0" in done.stdout
