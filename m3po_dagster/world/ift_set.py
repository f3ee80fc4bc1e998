"""The embedded world's instruction-following set: a question a scene, with the constraints that it implies.

The small model knows its own forms of question and no other sentence, so that no constraint can be said to it. What a
question implies can be checked all the same: a description is one sentence an object, each opening with "There is", and
names what is there; "Please answer yes or no." wants one word; "How many ...?" wants a number.
"""

import json
from pathlib import Path

import numpy as np

from m3po_dagster.world.language import NUMBERS, Kind, Question
from m3po_dagster.world.lessons import draw_question
from m3po_dagster.world.scenes import Cells, Scene, things_in

FILE = "ift.jsonl"
# What eight scenes in a row are asked, and whether a bare yes or no is.
ASKED: tuple[tuple[Kind, bool], ...] = (
    ("describe", False),
    ("exists", True),
    ("count", False),
    ("exists", False),
    ("describe", False),
    ("is_at", True),
    ("what_at", False),
    ("is_shape", False),
)
YES_OR_NO = ["Yes", "No"]


def write_ift(folder: Path, scenes: list[Scene], names: list[str], seed: np.random.SeedSequence) -> int:
    """Writes the set about the scenes, whose images are called `names`; returns the number of questions."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        kind, short = ASKED[number % len(ASKED)]
        question = draw_question(kind, scene.cells, rng, short=short)
        constraints = implied(question, scene.cells)
        rows.append({"question_id": number + 1, "image": name, "text": question.text, "constraints": constraints})
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def implied(question: Question, cells: Cells) -> list[dict]:
    """The constraints, as a set spells them, that the question puts on an answer about a scene with these cells."""
    things = [str(thing) for thing in things_in(cells)]
    one_sentence = {"kind": "exact_sentences", "n": 1}
    if question.short:
        return [{"kind": "one_of", "options": YES_OR_NO}, {"kind": "max_words", "n": 1}]
    match question.kind:
        case "describe":
            return [
                {"kind": "sentences_start_with", "text": "There is"},
                {"kind": "exact_sentences", "n": len(things)},
                {"kind": "include_words", "words": things},
                {"kind": "no_commas"},
            ]
        case "count":
            return [one_sentence, {"kind": "include_some", "words": list(NUMBERS), "n": 1}]
        case "what_at":
            return [one_sentence, {"kind": "ends_with", "text": f"at the {question.position}."}]
        case "exists":
            named = str(question.thing)
        case "is_shape":
            named = f"{question.colour} object"
        case _:
            raise ValueError(f"no constraints are known for a question of kind {question.kind}")
    return [{"kind": "starts_with", "texts": YES_OR_NO}, {"kind": "include_words", "words": [named]}, one_sentence]
