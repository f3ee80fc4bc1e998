"""Answers of one prompt that are graded in one request, and what the replies so far say of them."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from m3po_dagster.method.alignment.judge_image import JudgeImage
from m3po_dagster.method.alignment.judge_reply import CUT_OFF, Grades, Reading, mean_grade, read_reply
from m3po_dagster.method.alignment.judge_request import ASPECTS, IDS, repair, request, request_key
from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.alignment.turn import Turn
from m3po_dagster.method.prompt import Prompt

REQUESTS = 2
"""Requests for one group each time it is wanted: one, and one for what its reply left out or spoiled."""
NO_ANSWER = "no answer"


@dataclass
class Group:
    """One request's answers. `places` holds, by id, where the caller's list of answers has them."""

    prompt: Prompt
    image: JudgeImage
    places: Mapping[str, int]
    answers: Mapping[str, str]
    fields: Mapping[str, Any]
    revision: str
    grades: dict[str, Grades] = field(default_factory=dict)
    last: Reading | None = None
    _mendable: Reading | None = None

    def __post_init__(self) -> None:
        # The image counts by its hash: no need to encode it to see whether the ledger knows the answer.
        unsent = request(self.fields, self.prompt, self.image.unsent, self.answers)
        self.key = request_key(unsent, self.image.sha256, self.revision)

    @property
    def missing(self) -> list[str]:
        """The ids without grades."""
        return [key for key in self.answers if key not in self.grades]

    @property
    def settled(self) -> bool:
        """Whether asking the same again would help nobody: the last reply was a refusal, or ran on until it was cut."""
        return self.last is not None and (self.last.declined or CUT_OFF in self.last.problems.values())

    def recall(self, turns: Sequence[Turn], again: bool) -> int:
        """Takes in the replies that the ledger holds; gives the requests that are left to send, as `requests_left`."""
        for turn in turns:
            self.take(turn.reply)
        return self.requests_left(len(turns), again)

    def requests_left(self, turns: int, again: bool) -> int:
        """Requests to send for what is missing after `turns` known replies; `again`: as if it were asked anew."""
        if not self.missing:
            return 0
        if again:
            return REQUESTS
        return 0 if self.settled else max(0, REQUESTS - turns)

    def take(self, reply: str) -> None:
        """Takes in the body of a reply. What an earlier one graded stays as it is."""
        self.last = read_reply(reply, list(self.answers))
        for key, grades in self.last.grades.items():
            self.grades.setdefault(key, grades)
        if self.last.said.strip() and not self.settled:
            self._mendable = self.last

    def give_up(self, problem: str, said: str = "") -> None:
        """Notes that the ids without grades get none, and why."""
        self.last = Reading(problems=dict.fromkeys(self.missing, problem), said=said)

    def next_request(self) -> tuple[str, dict]:
        """What to ask for the missing grades: `first`, or `repair` where there is something to mend; and the body.

        Raises OSError when the image can't be decoded.
        """
        first = request(self.fields, self.prompt, self.image.part(), self.answers)
        if self._mendable is None:
            return "first", first
        problems = {key: self._mendable.problems[key] for key in self.missing}
        return "repair", repair(first, self._mendable.said, problems)

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
    random.Random(hashlib.sha256(texts.encode()).digest()).shuffle(order)
    return order


def in_groups(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cuts an order into as few groups of at most `size` as do, none more than one longer than another."""
    count = -(-len(order) // size)
    ends = [len(order) * number // count for number in range(count + 1)] if count else []
    return [order[start:end] for start, end in pairwise(ends)]


def named(group: Sequence[int]) -> dict[str, int]:
    """Id -> place, in the order shown."""
    return dict(zip(IDS, group, strict=False))
