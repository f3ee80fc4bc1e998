"""The embedded world's open instructions, whose answers a judge grades and compares (section 4.5)."""

from collections.abc import Sequence

from m3po_dagster.world.language import Question, true_answer
from m3po_dagster.world.scenes import Scene

FILE = "preference.jsonl"
EVERY = 4
"""One scene in so many is asked about: a served judge gets three requests an answer."""


def preference_rows(scenes: Sequence[Scene], names: Sequence[str]) -> list[dict]:
    """The lines of the file: a request to describe every fourth scene, with its true description as the reference."""
    describe = Question("describe")
    return [
        {
            "question_id": number,
            "image": name,
            "text": describe.text,
            "reference": true_answer(scene.cells, describe),
        }
        for number, (scene, name) in enumerate(list(zip(scenes, names, strict=True))[::EVERY], start=1)
    ]
