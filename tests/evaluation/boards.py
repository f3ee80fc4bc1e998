"""A small leaderboard to test with: two benchmarks, recipes that are wrong about so many of their 40 images."""

import json
from pathlib import Path

import pyarrow as pa

from m3po_dagster.evaluation.board import Board, Column
from m3po_dagster.evaluation.chair import Chair
from m3po_dagster.evaluation.leaderboard import LEADERBOARD
from m3po_dagster.evaluation.pope import Pope
from m3po_dagster.evaluation.settings import ChairSettings, PopeSettings
from m3po_dagster.storage.tables import SCORES

IMAGES = 40
WRONG_UP_TO = {
    ("base", 0): 20, ("m3po", 0): 8, ("m3po", 1): 10, ("m3po", 2): 9,
    ("same", 0): 20,
    ("alpha0", 0): 16, ("alpha0", 1): 17, ("alpha0", 2): 16,
}  # fmt: skip
"""Recipe and seed: the images whose questions are answered wrongly."""


def benchmarks(folder: Path) -> dict:
    """POPE and, under the name of scenes, CHAIR."""
    names = [f"{number}.png" for number in range(IMAGES)]
    for name in names:
        (folder / name).write_bytes(b"x")
    rows = [
        {"question_id": number, "image": name, "text": "Is there a dog?", "label": ("yes", "no")[number % 2]}
        for number, name in enumerate(names)
    ]
    labels = {split: folder / f"{split}.json" for split in ("random", "popular", "adversarial")}
    for path in labels.values():
        path.write_text("\n".join(map(json.dumps, rows)))
    described = [
        {"question_id": name, "image": name, "text": "Describe the image.", "objects": ["dog"]} for name in names
    ]
    lines = [*described, {"synonyms": {"cat": []}}]
    (folder / "chair.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {
        "pope": Pope(PopeSettings(labels=labels, image_root=folder)),
        "scenes": Chair(ChairSettings(path=folder / "chair.jsonl", image_root=folder)),
    }


def results(suite: dict, wrong_up_to=WRONG_UP_TO) -> tuple[pa.Table, dict]:
    """The scores, and the per-question table of each recipe, seed and benchmark."""
    rows, per_question = [], {}
    for (recipe, seed), wrong in wrong_up_to.items():
        for name, item in suite.items():
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


COLUMNS = (
    Column("pope", "accuracy", "POPE accuracy ↑", 1, 1),
    Column("pope", "adversarial", "POPE adversarial ↑", 1, 1),
    Column("scenes", "chair_i", "CHAIR-i ↓", -1, 1),
    Column("scenes", "recall", "CHAIR recall ↑", 1, 1),
    Column("scenes", "words", "CHAIR words", 0, 1),
    Column("pope", "format", "POPE format ↑", 1, 1),
)


def row(recipe, metric, found, against="base", p=None, corrected=None, same_as=None, over="seeds and images") -> dict:
    """A row of a leaderboard: `found` is a difference with its interval, or None."""
    benchmark = next(column.benchmark for column in COLUMNS if column.metric == metric)
    values = dict(zip(("difference", "ci_low", "ci_high"), map(float, found), strict=True)) if found else {}
    if found:
        corrected = p if corrected is None else corrected
        values |= {
            "p_value": p,
            "p_corrected": corrected,
            "significant": found[1] > 0 or found[2] < 0,
            "significant_corrected": corrected < 0.05,
            "interval_over": over,
        }
    keys = {"recipe": recipe, "benchmark": benchmark, "metric": metric, "against": against}
    return {
        **keys,
        "mean": 50.0 + values.get("difference", 0),
        "seed_sd": 0.5,
        "n_seeds": 3,
        "same_as": same_as,
        **values,
    }


def small_board(rows, **more) -> Board:
    """A board of such rows beside a base model."""
    base = [row("base", metric, None) for metric in dict.fromkeys(one["metric"] for one in rows)]
    references = list(dict.fromkeys(["base", *(one["against"] for one in rows)]))
    return Board("small", pa.Table.from_pylist([*base, *rows], LEADERBOARD), COLUMNS, references, **more)
