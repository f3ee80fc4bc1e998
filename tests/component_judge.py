"""A judge of components on loopback that looks at the picture it is sent, and judges by a rule that tests can follow.

    with ComponentJudge() as judge:
        ServedJudgeSettings(base_url=judge.base_url, model=judge.model)

A component "name the colour" is followed by a response that names the picture's own colour; "N words" by one of N words
and for a half by one of N + 1; any other component by every response.
"""

import base64
import io
import json
import re
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from tests.loopback import LoopbackServer, Reply, error
from tests.served_judge import completion
from tests.world.pixel_reader import RGB


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    body: dict

    @property
    def texts(self) -> list[dict]:
        """The material: the instruction with its components, then the response."""
        return [json.loads(part["text"]) for part in self.body["messages"][1]["content"][1:]]

    @property
    def components(self) -> list[dict]:
        return self.texts[0]["components"]

    @property
    def response(self) -> str:
        return self.texts[1]["response"]

    @property
    def colour(self) -> str:
        """The nearest of the known colours to the picture's first pixel."""
        url = self.body["messages"][1]["content"][0]["image_url"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) as image:
            pixel = image.convert("RGB").getpixel((0, 0))
        return min(RGB, key=lambda name: sum((a - b) ** 2 for a, b in zip(RGB[name], pixel, strict=True)))

    @property
    def is_repair(self) -> bool:
        return len(self.body["messages"]) > 2


class ComponentJudge(LoopbackServer):
    """The server; a context manager. `asked` counts requests by response; `instead` are replies that go out first."""

    def __init__(self, model: str = "component-judge") -> None:
        super().__init__()
        self.model = model
        self.asked: Counter[str] = Counter()
        self.received: deque[Asked] = deque(maxlen=100)
        self.instead: deque[Reply] = deque()

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if path != "/v1/chat/completions":
            return error(404, f"no such path: {path}")
        asked = Asked(json.loads(body))
        with self.lock:
            self.received.append(asked)
            self.asked[asked.response] += 1
            if self.instead:
                return self.instead.popleft()
        return judged(asked)


def judged(asked: Asked) -> Reply:
    """The reply of a judge that does what it is asked."""
    entries = [
        {"id": one["id"], "evidence": f"on {one['component']}", "score": one["weight"] * share(asked, one["component"])}
        for one in asked.components
    ]
    said = json.dumps({"seen": "", "grades": entries})
    usage = {"prompt_tokens": 500, "completion_tokens": len(said) // 4}
    return completion(said, usage=usage)


def share(asked: Asked, component: str) -> float:
    """How much of a component is followed."""
    if component == "name the colour":
        return float(asked.colour in asked.response.split())
    if match := re.fullmatch(r"(\d+) words", component):
        return {0: 1.0, 1: 0.5}.get(len(asked.response.split()) - int(match[1]), 0.0)
    return 1.0
