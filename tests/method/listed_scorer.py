"""A scorer that reads its values off a list and counts what it is asked."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from m3po_dagster.method.alignment.scorer import Score
from m3po_dagster.method.prompt import Message, Prompt


@dataclass
class Listed:
    """Answer text -> raw value or None (unscored). `asked` counts every answer it was given."""

    name: str
    values: Mapping[str, float | None]
    sub_scores: tuple[str, ...] = ()
    asked: Counter[str] = field(default_factory=Counter)
    calls: list[list[int]] = field(default_factory=list)

    def score(self, batch):
        self.calls.append([len(answers) for _, answers in batch])
        return [[self._score(answer) for answer in answers] for _, answers in batch]

    def _score(self, answer: str) -> Score:
        self.asked[answer] += 1
        value = self.values[answer]
        if value is None:
            return Score.unscored("declined", f"{self.name} would rather not")
        return Score(value, sub_scores=dict.fromkeys(self.sub_scores, value * 10), words=f"{self.name} says {value}")


def prompt(name: str) -> Prompt:
    """A prompt whose image nobody looks at."""
    return Prompt(name, Path("unused.png"), (Message("user", "?"),))
