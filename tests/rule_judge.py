"""A judge of known rule, and prompts whose truth it can see: what the checks of a judge are tested on.

An image is one grey, and an answer says how good it is for which grey: "grey 40: 0.70 word word". A judge that looks
gives the quality to its own image and a third of it to any other. All else that it does is a fault that was asked for.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.mas import MasSettings
from m3po_dagster.method.alignment.scorer import Score, ScorerSettings
from m3po_dagster.method.prompt import Message, Prompt

GRADES = 12
"""Steps of a mean of three grades from 1 to 5."""


class RuleSettings(ScorerSettings):
    """How the judge judges; 0 and False throughout: it is fair."""

    kind: Literal["rule"] = "rule"
    name: str = "rule"
    model: str = "rule"
    calibration: Calibration = Identity()
    group_size: int = 8
    at: str | None = "http://127.0.0.1:1/v1"
    text_only: bool = False
    seed: int = 0
    early: float = 0
    """What the first place of a request gains over the last."""
    ends: float = 0
    """What the first and the last gain over the middle."""
    long: float = 0
    """What ten words gain."""
    noise: float = 0
    blind: bool = False
    inverted: bool = False
    constant: bool = False
    unreadable: tuple[str, ...] = ()
    """Texts that are not scored."""

    @property
    def endpoint(self) -> str | None:
        return self.at

    @property
    def looks_at_image(self) -> bool:
        return not self.text_only

    @property
    def sub_scores(self) -> dict[str, str]:
        return {f"{self.name}_position": "place"} if self.group_size > 1 else {}

    def build(self, device: str = "cpu") -> "RuleJudge":
        return RuleJudge(self)


@dataclass
class RuleJudge:
    """Grades in groups as a listwise judge does; `requests` counts them, `asked` the answers in them."""

    settings: RuleSettings
    reverse: bool = False
    requests: Counter = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def sub_scores(self) -> tuple[str, ...]:
        return tuple(self.settings.sub_scores)

    def swapped(self) -> "RuleJudge":
        return RuleJudge(self.settings, not self.reverse, self.requests)

    def score(self, batch) -> list[list[Score]]:
        return [self._prompt(prompt, list(answers)) for prompt, answers in batch]

    def _prompt(self, prompt: Prompt, answers: Sequence[str]) -> list[Score]:
        rng = np.random.default_rng(_hash(self.settings.seed, prompt.prompt_id, answers))
        order, grey = rng.permutation(len(answers)), int(np.asarray(Image.open(prompt.image_path))[0, 0])
        count = -(-len(answers) // self.settings.group_size)
        scores: dict[int, Score] = {}
        for group in np.array_split(order, count):
            shown = group[::-1] if self.reverse else group
            self.requests["reversed" if self.reverse else "as shown"] += 1
            texts = [answers[i] for i in shown]
            for place, (i, text) in enumerate(zip(shown, texts, strict=True), 1):
                scores[int(i)] = self._answer(text, grey, place, texts)
        return [scores[i] for i in range(len(answers))]

    def _answer(self, text: str, grey: int, place: int, shown: list[str]) -> Score:
        rule = self.settings
        if text in rule.unreadable:
            return Score.unscored("not read")
        said, quality = int(text.split()[1].rstrip(":")), float(text.split()[2])
        value = quality if rule.blind or said == grey else quality / 3
        middle, reach = (1 + len(shown)) / 2, max((len(shown) - 1) / 2, 1)
        value += rule.early * (middle - place) / (2 * reach) + rule.ends * (abs(place - middle) / reach - 0.5)
        value += rule.long * (len(text.split()) - 8) / 10
        if rule.noise:
            value += rule.noise * np.random.default_rng(_hash(rule.seed, grey, place, shown)).normal()
        value = 1 - value if rule.inverted else value
        value = 0.5 if rule.constant else value
        value = math.floor(min(max(value, 0), 1) * GRADES + 0.5) / GRADES
        return Score(value, sub_scores={name: float(place) for name in self.sub_scores})


def judge_of(*scorers: RuleSettings) -> MasSettings:
    """A study's judge made of these scorers."""
    return MasSettings[RuleSettings](scorers=scorers)


@dataclass(frozen=True)
class Shard:
    """Prompts with the rows of their candidates, and the candidates as a table."""

    items: list[tuple[Prompt, list[dict]]]
    candidates: pa.Table

    def table(self, judge) -> pa.Table:
        """The MAS table that a judge makes of the shard."""
        rows = judge.score([(prompt, [row["text"] for row in given]) for prompt, given in self.items])
        ids = [row["candidate_id"] for _, given in self.items for row in given]
        names = [*judge.scorers, *judge.sub_scores]
        schema = pa.schema(
            [(name, pa.string()) for name in ("candidate_id", "prompt_id", "status")]
            + [(name, pa.float64()) for name in ("mas", *names)]
        )
        return pa.Table.from_pylist([{"candidate_id": key, **row} for key, row in zip(ids, rows, strict=True)], schema)


def shard(folder: Path, prompts: int = 40, answers: int = 12, seed: int = 0, prompts_an_image: int = 1) -> Shard:
    """A shard of random answers: their qualities are uniform, their lengths say nothing of them."""
    rng = np.random.default_rng(seed)
    items, columns = [], []
    for number in range(prompts):
        grey = number // prompts_an_image
        rows = []
        for k in range(answers):
            words = int(rng.integers(1, 12))
            rows.append(
                {
                    "candidate_id": f"p{number}:{k}",
                    "prompt_id": f"p{number}",
                    "text": answer(grey, rng.uniform(0.2, 1.0), words),
                    "n_tokens": words + 3,
                }
            )
        items.append((Prompt(f"p{number}", grey_image(folder, grey), (Message("user", "Which grey?"),)), rows))
        columns += rows
    return Shard(items, pa.Table.from_pylist(columns))


def answer(grey: int, quality: float, words: int = 0) -> str:
    """An answer that is this good for the image of one grey."""
    return " ".join([f"grey {grey}: {quality:.4f}", *["word"] * words])


def grey_image(folder: Path, grey: int) -> Path:
    """The image of one grey."""
    path = folder / f"grey-{grey}.png"
    if not path.exists():
        Image.fromarray(np.full((4, 4), grey, np.uint8)).save(path)
    return path


def known_pairs_file(folder: Path, pairs: int = 20) -> Path:
    """Known pairs about greys of their own, the better answer plainly better."""
    rng, lines = np.random.default_rng(1), []
    for number in range(pairs):
        image = grey_image(folder, 200 + number % 50)
        better, worse = rng.uniform(0.7, 1.0), rng.uniform(0.2, 0.5)
        lines.append(
            {
                "image": image.name,
                "question": "Which grey?",
                "better": answer(200 + number % 50, better, int(rng.integers(1, 12))),
                "worse": answer(200 + number % 50, worse, int(rng.integers(1, 12))),
            }
        )
    path = folder / "known_pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()[:8])
