"""A served judge on loopback: an OpenAI-compatible chat endpoint that looks at the picture it is sent.

    with ServedJudge() as judge:
        LlmJudgeSettings(base_url=judge.base_url, model=judge.model)

Scenes of the embedded world are read from their pixels and graded by the world's own rules; of any other picture it
knows the plain colours. Setting `revision` is what a provider does who swaps the model under its name: revision 2 is a
point stricter, revision 3 two points.
"""

import base64
import io
import json
import re
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from m3po_dagster.method.alignment.judge_request import ASPECTS
from m3po_dagster.method.alignment.probe import SIDE
from m3po_dagster.world.judge_words import evidence
from m3po_dagster.world.language import claims, kind_of, parse_question
from m3po_dagster.world.scene_reading import NOTHING, SceneReading
from m3po_dagster.world.scenes import POSITIONS, THINGS, Thing
from tests.loopback import LoopbackServer, Reply, error
from tests.world.pixel_reader import RGB, read_scene

SCENE = (64, 64)


@dataclass(frozen=True)
class Received:
    """One request as it came: its headers (names in lower case) and its body."""

    headers: Mapping[str, str]
    body: dict

    @property
    def _texts(self) -> list[dict]:
        return [json.loads(part["text"]) for part in self.body["messages"][1]["content"][1:]]

    @property
    def image(self) -> bytes:
        """The picture's bytes."""
        url = self.body["messages"][1]["content"][0]["image_url"]["url"]
        return base64.b64decode(url.partition("base64,")[2])

    @property
    def conversation(self) -> list[dict]:
        """The turns up to the instruction."""
        return self._texts[0]["conversation"]

    @property
    def answers(self) -> dict[str, str]:
        """The answers that this request wants graded, by id, in the order shown."""
        given = {answer["id"]: answer["text"] for answer in self._texts[1]["answers"]}
        if not self.is_repair:
            return given
        wanted = re.search(r'give "grades" for ([A-Z, ]+) alone', self.body["messages"][-1]["content"])[1].split(", ")
        return {key: text for key, text in given.items() if key in wanted}

    @property
    def is_probe(self) -> bool:
        """Whether it shows a picture of the probe set, whose width stands in the file's head."""
        return int.from_bytes(self.image[16:20]) == SIDE

    @property
    def is_repair(self) -> bool:
        """Whether an earlier reply is to be mended."""
        return len(self.body["messages"]) > 2


def completion(content: str | None, refusal: str | None = None, finish_reason: str = "stop", usage=None) -> Reply:
    """A chat completion with one choice."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"object": "chat.completion", "choices": [choice]} | ({"usage": usage} if usage else {})
    return Reply(body=json.dumps(body).encode())


def entry(key: str, relevance: object, accuracy: object, adherence: object, words: str = "") -> dict:
    """One answer's grades as a judge writes them."""
    return {"id": key, "evidence": words, **dict(zip(ASPECTS, (relevance, accuracy, adherence), strict=True))}


def graded(relevance: object, accuracy: object, adherence: object, words: str = "") -> Reply:
    """A completion with these grades for a request's only answer."""
    return completion(json.dumps({"seen": "", "grades": [entry("A", relevance, accuracy, adherence, words)]}))


class ServedJudge(LoopbackServer):
    """The server; a context manager. `requests` counts what came in, `probes` those of a probe set, `asked` by answer.

    `instead` maps an answer to the replies that its next requests get in place of a judgement. While `up` is false
    every request gets a 503. With a `meeting` each request waits until as many as its parties are there.
    """

    def __init__(self, model: str = "loopback-judge", key: str | None = None, revision: int = 1) -> None:
        super().__init__()
        self.model, self.key, self.revision, self.up = model, key, revision, True
        self.asked: Counter[str] = Counter()
        self.probes = 0
        self.received: deque[Received] = deque(maxlen=100)
        self.instead: defaultdict[str, list[Reply]] = defaultdict(list)
        self.meeting: threading.Barrier | None = None

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if self.meeting is not None:
            self.meeting.wait(timeout=20)
        if not self.up:
            return error(503, "the model is loading", retry_after_ms="1")
        if path != "/v1/chat/completions":
            return error(404, f"no such path: {path}")
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "wrong key")
        received = Received(headers, json.loads(body))
        if received.body["model"] != self.model:
            return error(404, f"no such model: {received.body['model']}")
        answers = received.answers
        with self.lock:
            self.received.append(received)
            self.asked.update(answers.values())
            self.probes += received.is_probe
            for answer in answers.values():
                if self.instead[answer]:
                    return self.instead[answer].pop(0)
        return self.judge(received)

    def judge(self, received: Received) -> Reply:
        """The reply of a judge that does what it is asked."""
        question = received.conversation[-1]["text"]
        entries = [
            entry(key, *self.grades(received.image, question, answer, place))
            for place, (key, answer) in enumerate(received.answers.items(), 1)
        ]
        said = json.dumps({"seen": "", "grades": entries})
        prompt_tokens = 400 + len(json.dumps(received.body["messages"][1]["content"][1:])) // 4
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(said) // 4}
        return completion(said, usage=usage)

    def grades(self, image: bytes, question: str, answer: str, place: int) -> tuple[int, int, int, str]:
        """The three grades of an answer that stands at a place of its request, and the words for them."""
        aspects, words = look(image, question, answer)
        return (*(max(1, 1 + round(4 * aspects[aspect]) - (self.revision - 1)) for aspect in ASPECTS), words)


def look(image: bytes, question: str, answer: str) -> tuple[dict[str, float], str]:
    """The aspects of an answer, each in [0, 1], and what was seen."""
    with Image.open(io.BytesIO(image)) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    if pixels.shape[:2] == SCENE and kind_of(question):
        cells = np.zeros((len(POSITIONS), NOTHING + 1))
        cells[:, NOTHING] = 1.0
        for position, name in read_scene(pixels).items():
            place = POSITIONS.index(position)
            cells[place, NOTHING], cells[place, THINGS.index(Thing(*name.split()))] = 0.0, 1.0
        reading, asked, said = SceneReading(cells), parse_question(question), claims(answer)
        return reading.aspects(asked, said), evidence(reading, asked, said)
    names = np.array(list(RGB))
    distance = ((pixels[::8, ::8, None, :].astype(int) - np.array(list(RGB.values()))) ** 2).sum(axis=-1)
    seen = set(names[distance.argmin(axis=-1)].ravel().tolist())
    named = {colour for colour in RGB if colour in answer.lower()}
    share = len(named & seen) / len(named) if named else 0.5
    brevity = 1.0 if len(answer.split()) < 8 else 0.5
    return {"relevance": share, "accuracy": share, "adherence": brevity}, f"sees {', '.join(sorted(seen))}"
