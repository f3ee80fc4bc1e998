"""A judge for benchmarks: an OpenAI-compatible endpoint on loopback, in a process of its own.

It gives the grades of a list after a fixed time, refuses what is not in the list, and counts what it was sent. Its CPU
is not the client's, and it is asked through sockets as any judge is.
"""

import asyncio
import base64
import hashlib
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from m3po_dagster.method.alignment.estimate import image_tokens, text_tokens
from m3po_dagster.method.alignment.judge_request import ASPECTS

HOST = "127.0.0.1"
MODEL = "listed-grades"
COUNTED = (
    "requests",
    "answers",
    "prompt_tokens",
    "rubric_tokens",
    "prefix_tokens",
    "repeated_tokens",
    "schema_tokens",
    "reply_tokens",
    "bytes",
)
"""prefix: rubric, image and conversation; repeated: what a cache that forgets nothing would have known of a prompt."""
EVIDENCE = (
    "The answer names what stands in the foreground rightly, but says nothing of the second object. "
    "It calls one colour wrong."
)
"""As long as a judge's evidence is, two short sentences."""


@dataclass(frozen=True)
class Graded:
    """An answer with its three grades, 1 to 5."""

    image_sha256: str
    question: str
    answer: str
    grades: Sequence[int]

    @property
    def key(self) -> str:
        """What it is found by."""
        return key_of(self.image_sha256, self.question, self.answer)


def key_of(image_sha256: str, question: str, answer: str) -> str:
    """What the grades of an answer are found by."""
    return json.dumps([image_sha256, question, answer])


@dataclass(frozen=True)
class Served:
    """A judge that listens; `counts` gives what it was sent since the last look."""

    base_url: str

    def counts(self) -> dict[str, int]:
        """COUNTED since the last call; tokens by the project's own estimate."""
        with urlopen(self.base_url.removesuffix("/v1") + "/counts") as reply:
            found = json.load(reply)
        return {name: found.get(name, 0) for name in COUNTED}


@contextmanager
def served(grades: Path, service_ms: float) -> Iterator[Served]:
    """Starts the judge with a file of `write_grades`; each reply takes `service_ms` milliseconds."""
    code = f"from judging_server import run; run({str(grades)!r}, {service_ms})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE)
    try:
        yield Served(process.stdout.readline().decode().strip() + "/v1")
    finally:
        process.terminate()
        process.wait()


def write_grades(path: Path, graded: Sequence[Graded], sizes: Mapping[str, tuple[int, int]]) -> Path:
    """Writes what the judge knows: grades, and the size in pixels of each image by its sha256."""
    path.write_text(json.dumps({"grades": {one.key: list(one.grades) for one in graded}, "sizes": sizes}))
    return path


class Judge:
    """The endpoint's two routes."""

    def __init__(self, known: Mapping, service_ms: float) -> None:
        self._grades, self._sizes, self._seconds = known["grades"], known["sizes"], service_ms / 1000
        self._counts: Counter[str] = Counter()
        self._seen: set[str] = set()

    async def counts(self, _: Request) -> JSONResponse:
        """What came in since the last call."""
        found, self._counts, self._seen = self._counts, Counter(), set()
        return JSONResponse(found)

    async def chat(self, request: Request) -> JSONResponse:
        """Grades, as an OpenAI-compatible server words them."""
        raw = await request.body()
        body = json.loads(raw)
        image, *texts = body["messages"][1]["content"]
        sha256 = hashlib.sha256(base64.b64decode(image["image_url"]["url"].partition("base64,")[2])).hexdigest()
        conversation, answers = (json.loads(part["text"]) for part in texts)
        question, given = conversation["conversation"][-1]["text"], answers["answers"]
        try:
            found = [self._grades[key_of(sha256, question, one["text"])] for one in given]
        except KeyError as unknown:
            return JSONResponse({"error": {"message": f"no grades for {unknown}"}}, status_code=400)
        tokens = self._count(len(raw), body, sha256, len(given))
        entries = [
            {"id": one["id"], "evidence": EVIDENCE, **dict(zip(ASPECTS, grades, strict=True))}
            for one, grades in zip(given, found, strict=True)
        ]
        said = json.dumps(
            {"seen": "A street with a red bus and some people. A dog lies at the left.", "grades": entries}
        )
        self._counts["reply_tokens"] += text_tokens(said)
        await asyncio.sleep(self._seconds)
        message = {"role": "assistant", "content": said, "refusal": None}
        return JSONResponse(
            {
                "object": "chat.completion",
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": tokens, "completion_tokens": text_tokens(said)},
            }
        )

    def _count(self, size: int, body: dict, image_sha256: str, answers: int) -> int:
        rubric = text_tokens(body["messages"][0]["content"])
        conversation, listed = (text_tokens(part["text"]) for part in body["messages"][1]["content"][1:])
        image = image_tokens(*self._sizes[image_sha256])
        prompt = rubric + image + conversation + listed
        # What a cache that forgets nothing would know of it: the rubric, and in a prompt's further requests the image.
        shared = {"": rubric, image_sha256 + body["messages"][1]["content"][1]["text"]: image + conversation}
        known = sum(tokens for key, tokens in shared.items() if key in self._seen)
        self._seen |= shared.keys()
        self._counts.update(
            requests=1,
            answers=answers,
            bytes=size,
            prompt_tokens=prompt,
            rubric_tokens=rubric,
            prefix_tokens=rubric + image + conversation,
            repeated_tokens=known,
            schema_tokens=text_tokens(json.dumps(body["response_format"])),
        )
        return prompt


def run(grades: str, service_ms: float) -> None:
    """Serves until it is stopped; prints its address once it listens."""
    judge = Judge(json.loads(Path(grades).read_text()), service_ms)
    routes = [Route("/v1/chat/completions", judge.chat, methods=["POST"]), Route("/counts", judge.counts)]
    settings = uvicorn.Config(Starlette(routes=routes), log_level="warning", access_log=False, lifespan="off")
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(1024)
        print(f"http://{HOST}:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(settings).run(sockets=[listener])
