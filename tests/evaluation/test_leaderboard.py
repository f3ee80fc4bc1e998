import json

import pyarrow as pa
import pytest

from m3po_dagster.evaluation.chair import Chair
from m3po_dagster.evaluation.leaderboard import LEADERBOARD, leaderboard, markdown
from m3po_dagster.evaluation.pope import Pope
from m3po_dagster.evaluation.settings import ChairSettings, PopeSettings
from m3po_dagster.storage.tables import SCORES

IMAGES = 40
WRONG_UP_TO = {("base", 0): 20, ("m3po", 0): 8, ("m3po", 1): 10, ("m3po", 2): 9, ("same", 0): 20}


@pytest.fixture
def benchmarks(tmp_path):
    names = [f"{number}.png" for number in range(IMAGES)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    rows = [
        {"question_id": number, "image": name, "text": "Is there a dog?", "label": ("yes", "no")[number % 2]}
        for number, name in enumerate(names)
    ]
    labels = {split: tmp_path / f"{split}.json" for split in ("random", "popular", "adversarial")}
    for path in labels.values():
        path.write_text("\n".join(map(json.dumps, rows)))
    described = [
        {"question_id": name, "image": name, "text": "Describe the image.", "objects": ["dog"]} for name in names
    ]
    lines = [*described, {"synonyms": {"cat": []}}]
    (tmp_path / "chair.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {
        "pope": Pope(PopeSettings(labels=labels, image_root=tmp_path)),
        "scenes": Chair(ChairSettings(path=tmp_path / "chair.jsonl", image_root=tmp_path)),
    }


@pytest.fixture
def results(benchmarks):
    """Recipe and seed say how many of the 40 images are answered wrongly."""
    rows, per_question = [], {}
    for (recipe, seed), wrong in WRONG_UP_TO.items():
        for name, item in benchmarks.items():
            questions = item.load()
            answers = {}
            for question in questions:
                bad = int(question.image_uri.partition(".")[0]) < wrong
                if name == "pope":
                    answers[question.question_id] = "yes" if (question.expected == "yes") != bad else "no"
                else:
                    answers[question.question_id] = "A dog and a cat." if bad else "A dog."
            per_question[recipe, seed, name] = item.per_question(questions, answers)
            for metric in item.score(questions, answers, resamples=50):
                rows.append({"recipe": recipe, "seed": seed, "benchmark": name, "rule": "official", **vars(metric)})
    return pa.Table.from_pylist(rows, SCORES.schema), per_question


def test_means_seeds_and_differences(benchmarks, results):
    scores, per_question = results
    table = leaderboard(scores, per_question, benchmarks)
    assert table.schema == LEADERBOARD
    rows = {(row["recipe"], row["benchmark"], row["metric"]): row for row in table.to_pylist()}
    assert len(rows) == 3 * (24 + 6)
    base, ours, same = (rows[recipe, "pope", "accuracy"] for recipe in ("base", "m3po", "same"))
    assert (base["mean"], base["seed_sd"], base["n_seeds"], base["difference"], base["significant"]) == (
        50.0,
        None,
        1,
        None,
        None,
    )
    assert (ours["mean"], ours["seed_sd"], ours["n_seeds"]) == pytest.approx((77.5, 2.5, 3))
    assert ours["difference"] == pytest.approx(ours["mean"] - base["mean"])
    assert ours["ci_low"] < ours["difference"] < ours["ci_high"]
    assert ours["significant"]
    assert (same["difference"], same["ci_low"], same["ci_high"], same["significant"]) == (0, 0, 0, False)
    hallucinated = rows["m3po", "scenes", "chair_s"]
    assert hallucinated["difference"] == pytest.approx(22.5 - 50)
    assert hallucinated["ci_high"] < 0
    assert hallucinated["significant"]
    assert rows["m3po", "scenes", "recall"]["significant"] is False
    for (recipe, name, metric), row in rows.items():
        if recipe != "base":
            assert row["difference"] == pytest.approx(row["mean"] - rows["base", name, metric]["mean"])


def test_base_comes_first_and_the_markdown_is_a_table(benchmarks, results):
    scores, per_question = results
    turned = scores.take(list(reversed(range(scores.num_rows))))
    text = markdown(leaderboard(turned, per_question, benchmarks), benchmarks)
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert len({len(row) for row in cells}) == 1
    assert cells[0][:3] == ["recipe", "POPE accuracy ↑", "POPE adversarial ↑"]
    assert "scenes: CHAIR-i ↓" in cells[0]
    assert [row[0] for row in cells[2:]] == ["base", "same", "m3po"]
    assert [row[1] for row in cells[2:]] == ["50.0", "50.0", "77.5 ± 2.5 *"]
    assert "not corrected for the number of comparisons" in lines[-1]


def test_a_recipe_without_a_benchmark_has_a_dash(benchmarks, results):
    scores, per_question = results
    keep = [not (row["recipe"] == "same" and row["benchmark"] == "scenes") for row in scores.to_pylist()]
    table = leaderboard(scores.filter(pa.array(keep)), per_question, benchmarks)
    same = next(line for line in markdown(table, benchmarks).splitlines() if line.startswith("| same"))
    assert same.count("–") == 4


def test_what_is_missing_is_named(benchmarks, results):
    scores, per_question = results
    with pytest.raises(ValueError, match="no scores of recipe none"):
        leaderboard(scores, per_question, benchmarks, base="none")
    fewer = {key: value for key, value in per_question.items() if key != ("m3po", 1, "pope")}
    with pytest.raises(ValueError, match="no per-question results of recipe m3po, seed 1, benchmark pope"):
        leaderboard(scores, fewer, benchmarks)
    keep = [not (row["recipe"] == "base" and row["benchmark"] == "pope") for row in scores.to_pylist()]
    with pytest.raises(ValueError, match="no scores of recipe base on benchmark pope"):
        leaderboard(scores.filter(pa.array(keep)), per_question, benchmarks)
