"""A judge on loopback that answers by a known rule, except for a share of its requests, which meet every fault in turn.

`delivered` counts, for each answer of each prompt, the usable grades that left the server: what a user pays for. A
grade that a fault spoils, drops or holds back is not among them.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.loopback import Reply, error
from tests.served_judge import Received, ServedJudge, completion

TIMEOUT = 2.0
"""Seconds after which the judges of these tests give up a reply."""


def _entries(reply: Reply) -> dict:
    return json.loads(json.loads(reply.body)["choices"][0]["message"]["content"])


def _said(text: str) -> Reply:
    return completion(text, usage={"prompt_tokens": 500, "completion_tokens": len(text) // 4})


def _with(change: Callable[[list[dict]], list[dict]]) -> Callable[[Reply], Reply]:
    def spoil(reply: Reply) -> Reply:
        content = _entries(reply)
        return _said(json.dumps({**content, "grades": change(content["grades"])}))

    return spoil


def _last(**changed: object) -> Callable[[Reply], Reply]:
    return _with(lambda grades: [*grades[:-1], {**grades[-1], **changed}])


# Name -> what goes out in place of a good reply, and for how many of the request's answers the client may still use it:
# all of them, all but the last, or none.
FAULTS: dict[str, tuple[Callable[[Reply], Reply], str]] = {
    "429 with Retry-After": (lambda reply: error(429, "busy", Retry_After="0.01"), "none"),
    "500": (lambda reply: error(500, "broken", retry_after_ms="1"), "none"),
    "timeout": (lambda reply: Reply(reply.status, reply.body, delay=2 * TIMEOUT), "none"),
    "dropped connection": (lambda reply: Reply(reply.status, reply.body, cut=len(reply.body) // 2), "none"),
    "truncated JSON": (lambda reply: _said(json.dumps(_entries(reply))[:-30]), "none"),
    "prose around JSON": (lambda reply: _said(f"Here you are:\n```json\n{json.dumps(_entries(reply))}\n```\n"), "all"),
    "missing id": (_with(lambda grades: grades[:-1]), "but the last"),
    "duplicate id": (_with(lambda grades: [*grades, grades[-1]]), "but the last"),
    "foreign id": (_last(id="Z"), "but the last"),
    "number out of range": (_last(accuracy=9), "but the last"),
    "string for a number": (_last(accuracy="4"), "but the last"),
    "refusal": (lambda reply: completion(None, refusal="I can't help with that."), "none"),
    "empty choice": (lambda reply: completion(""), "none"),
    "no choice": (lambda reply: Reply(body=b'{"choices": []}'), "none"),
    "cut off": (lambda reply: completion('{"seen": "a long', finish_reason="length"), "none"),
}


class FaultyJudge(ServedJudge):
    """`share` of the requests meet a fault; `met` counts them by name. With `pace` a reply takes that many seconds."""

    def __init__(self, share: float, seed: int = 0, pace: float = 0.0, **settings) -> None:
        super().__init__(**settings)
        self.share, self.pace = share, pace
        self._random = random.Random(seed)
        self._faults = list(FAULTS)
        self.met: Counter[str] = Counter()
        self.delivered: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()

    def judge(self, received: Received) -> Reply:
        time.sleep(self.pace)
        good = super().judge(received)
        name, reply, usable = "", good, "all"
        with self._counting:
            if self._random.random() < self.share:
                name = self._faults[self.met.total() % len(self._faults)]
                self.met[name] += 1
        if name:
            spoil, usable = FAULTS[name]
            reply = spoil(good)
        texts = list(received.answers.values())
        if usable != "all":
            texts = texts[:-1] if usable == "but the last" else []
        question = received.conversation[-1]["text"]
        with self._counting:
            self.delivered.update((question, text) for text in texts)
        return reply
