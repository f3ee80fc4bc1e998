"""A served judge of known rule on loopback, asked to grade answers and to compare them.

It reads the scene from the pixels it is sent and values an answer by the world's own rules, in [0, 1]. All else that it
does is a fault that was asked for: `early` is what the answer shown first gains in a comparison, `long` what each word
gains an answer.
"""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import fmean

from m3po_dagster.evaluation.preference_request import ANSWER, PAIR
from tests.loopback import LoopbackServer, Reply, error
from tests.served_judge import completion, look

TIE = 0.01
"""Values that differ by less are a tie."""


class PreferenceJudge(LoopbackServer):
    """`requests` counts all, `asked` those for a grade, a comparison and a repair.

    `instead` maps an answer, or the pair of answers in the order shown, to the replies that its next requests get.
    """

    def __init__(self, early: float = 0, long: float = 0) -> None:
        super().__init__()
        self.early, self.long, self.up = early, long, True
        self.model = "loopback-assessor"
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.instead: defaultdict[str | tuple[str, str], list[Reply]] = defaultdict(list)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if not self.up:
            return error(503, "the model is loading", retry_after_ms="1")
        asked = json.loads(body)
        image, *texts = asked["messages"][1]["content"]
        given = {key: value for part in texts for key, value in json.loads(part["text"]).items()}
        pixels = base64.b64decode(image["image_url"]["url"].partition("base64,")[2])
        alone = "answer" in given
        key = given["answer"] if alone else (given["first"], given["second"])
        with self.lock:
            self.bodies.append(asked)
            self.asked["repair" if len(asked["messages"]) > 2 else "grade" if alone else "comparison"] += 1
            if self.instead[key]:
                return self.instead[key].pop(0)
        if alone:
            value = self.value(pixels, given["instruction"], given["answer"])
            return said(ANSWER, grade=1 + round(4 * min(max(value, 0), 1)))
        first, second = (self.value(pixels, given["instruction"], given[place]) for place in ("first", "second"))
        gap = first + self.early - second
        return said(PAIR, better="tie" if abs(gap) < TIE else "first" if gap > 0 else "second")

    def value(self, image: bytes, instruction: str, answer: str) -> float:
        """How good an answer is to this judge."""
        return fmean(look(image, instruction, answer)[0].values()) + self.long * len(answer.split())


def said(key: str, **entry: object) -> Reply:
    """A reply with one entry."""
    content = json.dumps({"seen": "a scene", "grades": [{"id": key, "evidence": "as seen", **entry}]})
    return completion(content, usage={"prompt_tokens": 300, "completion_tokens": len(content) // 4})
