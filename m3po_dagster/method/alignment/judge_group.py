"""Answers of one prompt that are graded in one request (paper, section 3.3)."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from m3po_dagster.method.alignment.inquiry import Inquiry
from m3po_dagster.method.alignment.judge_image import JudgeImage
from m3po_dagster.method.alignment.judge_reply import Grades, mean_grade
from m3po_dagster.method.alignment.judge_request import ASPECTS, IDS, request_texts
from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.prompt import Prompt


class Group(Inquiry):
    """One request's answers, and their grades by id."""

    def __init__(
        self,
        prompt: Prompt,
        image: JudgeImage,
        places: Mapping[str, int],
        answers: Mapping[str, str],
        fields: Mapping[str, Any],
        revision: str,
    ) -> None:
        """`places` holds, by id, where the caller's list of answers has them."""
        super().__init__(prompt.prompt_id, image, fields, revision)
        self.prompt, self.places, self.answers = prompt, places, answers

    @property
    def texts(self) -> tuple[str, ...]:
        """The rubric, the conversation, the answers."""
        return request_texts(self.prompt, self.answers)

    @property
    def entries(self) -> Mapping[str, type[Grades]]:
        """Each answer gets grades."""
        return dict.fromkeys(self.answers, Grades)

    def scores(self, name: str) -> dict[int, Score]:
        """The score of each of the caller's answers, by its place in the caller's list."""
        return {self.places[key]: self._score(name, position, key) for position, key in enumerate(self.answers, 1)}

    def _score(self, name: str, position: int, key: str) -> Score:
        grades = self.grades.get(key)
        if grades is None:
            return Score.unscored(self.last.problems[key], self.last.said)
        given = {f"{name}_{aspect}": float(grades.of(aspect)) for aspect in ASPECTS}
        return Score(
            mean_grade(given.values()), sub_scores=given | {f"{name}_position": float(position)}, words=grades.evidence
        )


def shown_order(answers: Sequence[str], prompt_id: str, seed: int) -> list[int]:
    """The places of `answers` in the order in which a judge is shown them: a permutation by seed and prompt.

    Judges prefer some places of a list; which answer stands there must be chance, and the same on every machine.
    """
    texts = json.dumps([seed, prompt_id, *answers])
    order = list(range(len(answers)))
    random.Random(hashlib.sha256(texts.encode()).digest()).shuffle(order)  # noqa: S311 - an order that comes again
    return order


def in_groups(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cuts an order into as few groups of at most `size` as do, none more than one longer than another."""
    count = -(-len(order) // size)
    ends = [len(order) * number // count for number in range(count + 1)] if count else []
    return [order[start:end] for start, end in pairwise(ends)]


def named(group: Sequence[int]) -> dict[str, int]:
    """Id -> place, in the order shown."""
    return dict(zip(IDS, group, strict=False))
