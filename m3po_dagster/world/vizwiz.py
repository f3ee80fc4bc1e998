"""A VizWiz-style set about the scenes, in VizWiz's own layout: an open question a scene, ten people's answers to it.

People word the same answer in several ways and in more or less detail, and one in a while sees nothing. Every fifth
question can't be answered, for it asks for an object that is not there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from m3po_dagster.world.language import NUMBERS, YES_NO_KINDS, Question
from m3po_dagster.world.lessons import draw_question
from m3po_dagster.world.scenes import POSITIONS, Cells, Scene, things_in
from m3po_dagster.world.tiles import COLOURS

AnswerType = Literal["other", "yes/no", "number", "unanswerable"]
Asked = Literal["place", "shape", "yes/no", "number", "unanswerable"]
# What five scenes in a row are asked.
ASKED: tuple[Asked, ...] = ("place", "yes/no", "shape", "number", "unanswerable")
PEOPLE = 10
# So many give the plain answer for certain, so that it is the most popular one as in VizWiz; the others as it comes.
PLAIN = 5
SEES_NOTHING_RATE = 0.05


@dataclass(frozen=True)
class Wording:
    """One way to word an answer, how often the others choose it, and whether they are sure ("yes" or "maybe")."""

    text: str
    rate: float
    confidence: str = "yes"


def write_vizwiz(path: Path, scenes: list[Scene], names: list[str], seed: np.random.SeedSequence) -> int:
    """Writes the annotations of the scenes, whose images are called `names`; returns the number of questions."""
    rng = np.random.default_rng(seed)
    records = [
        {"image": name, **annotation(scene.cells, ASKED[number % len(ASKED)], rng)}
        for number, (scene, name) in enumerate(zip(scenes, names, strict=True))
    ]
    path.write_text(json.dumps(records, indent=1) + "\n")
    return len(records)


def annotation(cells: Cells, asked: Asked, rng: np.random.Generator) -> dict:
    """VizWiz's record without its image: question, answers, answer_type, answerable. The first wording is the plain."""
    question, answer_type, wordings = _draw(cells, asked, rng)
    rates = np.array([wording.rate for wording in wordings])
    chosen = [wordings[0]] * PLAIN
    for number in rng.choice(len(wordings), PEOPLE - PLAIN, p=rates / rates.sum()):
        sees = answer_type == "unanswerable" or rng.random() >= SEES_NOTHING_RATE
        chosen.append(wordings[number] if sees else Wording("unanswerable", 0, "no"))
    return {
        "question": question.text,
        "answers": [
            {"answer": chosen[place].text, "answer_confidence": chosen[place].confidence}
            for place in rng.permutation(PEOPLE)
        ],
        "answer_type": answer_type,
        "answerable": int(answer_type != "unanswerable"),
    }


def _draw(cells: Cells, asked: Asked, rng: np.random.Generator) -> tuple[Question, AnswerType, list[Wording]]:
    things = things_in(cells)
    thing = things[rng.integers(len(things))]
    match asked:
        case "place":
            question = Question("what_at", position=POSITIONS[cells.index(thing)])
            detail = [Wording(f"a {thing}", 0.2), Wording(thing.shape, 0.2, "maybe"), Wording(f"{thing}.", 0.1)]
            return question, "other", [Wording(str(thing), 0.5), *detail]
        case "shape":
            detail = [Wording(f"a {thing.shape}", 0.25), Wording(thing.shape.capitalize(), 0.1)]
            wordings = [Wording(thing.shape, 0.5), *detail, Wording(str(thing), 0.15, "maybe")]
            return Question("what_shape", colour=thing.colour), "other", wordings
        case "yes/no":
            truth = bool(rng.random() < 0.5)
            kind = YES_NO_KINDS[rng.integers(len(YES_NO_KINDS))]
            word = "yes" if truth else "no"
            wordings = [Wording(word, 0.6), Wording(word.capitalize(), 0.3), Wording(f"{word}.", 0.1)]
            return draw_question(kind, cells, rng, truth, short=True), "yes/no", wordings
        case "number":
            word, digit = NUMBERS[len(things)], str(len(things))
            detail = [Wording(digit, 0.3), Wording(f"{word} object{'' if digit == '1' else 's'}", 0.2)]
            return Question("count"), "number", [Wording(word, 0.5), *detail]
        case "unanswerable":
            absent = [colour for colour in COLOURS if colour not in {thing.colour for thing in things}]
            colour = absent[rng.integers(len(absent))]
            detail = [Wording("unsuitable image", 0.15), Wording(f"no {colour} object", 0.15, "maybe")]
            return Question("what_shape", colour=colour), "unanswerable", [Wording("unanswerable", 0.7), *detail]
