"""`m3po judge validate` as a person and a script use it, on the embedded world's judge and on a served one."""

import csv
import json
from pathlib import Path

import pytest
from judge_project import PROBE, JudgeProject
from PIL import Image

from m3po_dagster.world.judge import JUDGE_FOLDER
from m3po_dagster.world.ratings import write_ratings
from tests.served_judge import ServedJudge


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> JudgeProject:
    """A study nothing was run in: validating needs its judge alone."""
    return JudgeProject(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rated") / "ratings"
    write_ratings(folder, 30, seed=2)
    return folder / "ratings.csv"


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_every_column_of_the_judge_and_ends_in_words(project, ratings, tmp_path):
    output = project.call("judge", "validate", ratings, "--plot", tmp_path / "plot.png").stdout
    answers = len(rows_of(ratings))
    lines = output.splitlines()
    assert lines[0].startswith(f"{answers} rated answers to 30 prompts")
    assert [line.split()[0] for line in lines[3:6]] == ["mas", "scene_judge", "clip"]
    assert {line.split()[0] for line in lines[6:12]} == {
        *("relevance", "accuracy", "adherence", "clip_mean", "clip_low", "clip_statements")
    }
    assert "MAS rises with the ratings" in output and lines[-1] == f"wrote {tmp_path / 'plot.png'}"
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 300


def test_json_has_the_same_figures(project, ratings):
    found = json.loads(project.call("judge", "validate", ratings, "--json").stdout)
    mas = found["columns"]["mas"]
    assert (mas["answers"], mas["unscored"], mas["images"]) == (len(rows_of(ratings)), 0, 30)
    for name in ("pearson", "spearman", "kendall"):
        assert -1 <= mas[name]["low"] <= mas[name]["value"] <= mas[name]["high"] <= 1
    assert mas["pairs"]["right"] + mas["pairs"]["tied"] <= mas["pairs"]["pairs"]
    assert found["raters"] is None and found["verdict"][0].startswith("MAS rises")


def test_several_raters_are_reported(project, ratings, tmp_path):
    path = tmp_path / "two.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer", "rating", "rater"])
        for number, row in enumerate(rows_of(ratings)):
            cells = [row["image"], row["question"], row["answer"]]
            writer.writerow([*cells, row["rating"], "ann"])
            writer.writerow([*cells, float(row["rating"]) + 0.6 * (number % 3), "bob"])
    output = project.call("judge", "validate", path, "--image-root", ratings.parent).stdout
    rated = len(rows_of(ratings))
    assert f"raters: {2 * rated} ratings of the {rated} answers that several rated; Krippendorff's alpha 0." in output
    assert "One rater against the mean of the others" in output


def test_an_answer_the_judge_can_not_score_is_counted_with_its_reason(project, ratings, tmp_path):
    path = tmp_path / "more.csv"
    first = rows_of(ratings)[0]
    path.write_text(ratings.read_text() + f"{first['image']},{first['question']},,1,labels\n")
    output = project.call("judge", "validate", path, "--image-root", ratings.parent).stdout
    assert "1 without MAS: scene_judge: empty answer; clip: answer has no words" in output


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda text: text.replace("rating", "grade", 1), [], "line 1: no column 'rating'"),
        (lambda text: text + "images/scene-0.png,What?,Red.,high,ann\n", [], "column rating: 'high' is no number"),
        (lambda text: text, ["--plot", "plot.gif"], "must end in .png, .svg, .pdf"),
        (lambda text: text, ["--plot", "/nowhere/plot.png"], "/nowhere/plot.png"),
        (lambda text: text, ["--image-root", "/nowhere"], "column image: /nowhere/images/scene-0.png can't be read"),
    ],
)
def test_refusals_end_with_2_before_anything_is_scored(project, ratings, monkeypatch, change, options, message):
    path = ratings.with_name("changed.csv")
    path.write_text(change(ratings.read_text()))
    monkeypatch.setattr("m3po_dagster.method.alignment.mas.MasScorer.score", lambda *_: pytest.fail("scored"))
    result = project.call("judge", "validate", path, *options, code=2)
    assert message in result.stderr and not result.stdout


def test_a_missing_file_is_named(project, tmp_path):
    assert "none.csv" in project.call("judge", "validate", tmp_path / "none.csv", code=2).stderr


def test_a_calibration_fitted_for_another_model_is_refused_here_too(project, ratings, tmp_path):
    fit = {"model": "another", "study": "s", "shards": {}, "seed": 0, "prompts": 1, "values": 2, "unscored": {}}
    entry = {"map": {"kind": "linear", "low": 0, "high": 1}, "fit": {**fit, "tails": 0.0, "quantiles": {}}}
    (tmp_path / "maps.json").write_text(json.dumps({"clip": entry}))
    try:
        project.write(calibrations=str(tmp_path / "maps.json"))
        result = project.call("judge", "validate", ratings, code=1)
    finally:
        project.write()
    assert "fitted on another model or under other settings" in result.stderr


def test_a_served_judge_says_what_it_will_ask_and_many_requests_need_a_yes(project, ratings, monkeypatch):
    plain = project.scorers
    with ServedJudge() as server:
        served = {"kind": "llm_judge", "model": server.model, "base_url": server.base_url}
        try:
            project.scorers = [served, {"kind": "clip", "model": str(JUDGE_FOLDER), "tiles": 2, "weight": 0}]
            # What a cascade would leave out of a shard is rated here, so it is asked about.
            project.write(cascade={})
            monkeypatch.setattr("m3po_dagster.cli.judge_requests.WITHOUT_YES", 3)
            assert "give --yes" in project.call("judge", "validate", ratings, code=2).stderr
            assert server.requests == 0
            result = project.call("judge", "validate", ratings, "--yes", "--json")
        finally:
            project.scorers = plain
            project.write()
        assert f"llm_judge: {server.requests - PROBE} requests to {server.base_url}" in result.stderr
    found = json.loads(result.stdout)
    assert found["columns"]["llm_judge"]["answers"] == len(rows_of(ratings))
    # The loopback judge reads the scene's pixels: it knows what the labels say.
    assert found["columns"]["mas"]["spearman"]["low"] > 0.5
