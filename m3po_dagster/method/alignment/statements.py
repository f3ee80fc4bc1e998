"""Scores an answer statement by statement: what every scorer does whose model reads a short text (section 3.3).

Such a model takes few tokens, or was trained on captions, and does not follow an instruction. So an answer is split
into sentences, a very short answer is joined to its question, a sentence too long for the model is windowed (never cut
in silence), and the value mixes the mean over statements with a low quantile: one wrong statement among many right ones
must cost something.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from pydantic import Field

from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE, Batch, ModelScorerSettings, Score
from m3po_dagster.method.alignment.sentences import as_statements, split_sentences, windows
from m3po_dagster.method.prompt import Prompt

Assessment = Mapping[str, float | str]
"""Text -> how well it fits an image, on the model's own scale; or, as words, why there is no value."""


class StatementSettings(ModelScorerSettings):
    """How the statements of an answer become one value."""

    MEASURE: ClassVar[str]
    """What the model gives a statement, in words."""

    quantile: float = Field(0.1, ge=0, le=1, description="which low quantile over statements stands beside their mean")
    low_weight: float = Field(0.5, ge=0, le=1, description="share of that quantile in the value; the rest is the mean")
    short_words: int = Field(
        4,
        ge=0,
        le=50,
        description="a sole sentence of at most this many words is joined to its question; 0: never",
    )

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_mean, NAME_low, NAME_statements and NAME_seen."""
        return {
            f"{self.name}_mean": f"mean {self.MEASURE} of the answer's statements with the image",
            f"{self.name}_low": f"their {self.quantile:g} quantile: the statements that fit least",
            f"{self.name}_statements": "number of statements seen, windows of long ones included",
            f"{self.name}_seen": "share of the answer's words that the model was shown: not those that its vocabulary "
            "has no token for",
        }


class Assessor(Protocol):
    """A model that says how well short texts fit images."""

    def fits(self, text: str) -> bool:
        """Whether the model takes the whole text."""
        ...

    def knows(self, word: str) -> bool:
        """Whether the model is shown the word itself, not its tokenizer's token for anything unknown."""
        ...

    def assess(self, asked: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Assessment | None]:
        """Each image's texts against it; None for an image that can't be read.

        The images are of different files, the texts of one image distinct, and each text fits. A value does not depend
        on what else is asked (up to rounding).
        """
        ...


class StatementScorer:
    """Hands each image and each of its distinct statements to the model once and puts an answer's values together."""

    def __init__(self, settings: StatementSettings, assessor: Assessor) -> None:
        self.settings = settings
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self.assessor = assessor

    def score(self, batch: Batch) -> list[list[Score]]:
        """Raw values on the model's own scale.

        Unscored: an answer without a word, an image that can't be read, an answer of which the model could not be asked
        a statement.
        """
        cut: dict[str, list[str]] = {}
        known: dict[str, bool] = {}
        asked: dict[Path, tuple[Prompt, dict[str, None]]] = {}
        said: list[list[list[str]]] = []
        for prompt, answers in batch:
            _, texts = asked.setdefault(prompt.image_path, (prompt, {}))
            said.append([])
            for answer in answers:
                statements = as_statements(prompt.question, answer, self.settings.short_words)
                for statement in statements:
                    if statement not in cut:
                        cut[statement] = windows(statement, self.assessor.fits)
                said[-1].append([piece for statement in statements for piece in cut[statement]])
                texts |= dict.fromkeys(said[-1][-1])
        found = self.assessor.assess([(prompt, list(texts)) for prompt, texts in asked.values()])
        assessed = dict(zip(asked, found, strict=True))
        return [
            [
                self._score(pieces, assessed[prompt.image_path], self._seen(answer, known))
                for answer, pieces in zip(answers, of_prompt, strict=True)
            ]
            for (prompt, answers), of_prompt in zip(batch, said, strict=True)
        ]

    def _score(self, pieces: list[str], assessed: Assessment | None, seen: float) -> Score:
        if assessed is None:
            return Score.unscored(UNREADABLE_IMAGE)
        if not pieces:
            return Score.unscored("answer has no words")
        values = [assessed[piece] for piece in pieces]
        if reasons := [value for value in values if isinstance(value, str)]:
            return Score.unscored(reasons[0])
        mean, low = float(np.mean(values)), float(np.quantile(values, self.settings.quantile))
        value = (1 - self.settings.low_weight) * mean + self.settings.low_weight * low
        return Score(value, sub_scores=dict(zip(self.sub_scores, (mean, low, float(len(pieces)), seen), strict=True)))

    def _seen(self, answer: str, known: dict[str, bool]) -> float:
        """The share of the answer's words that the model was shown: all stand in a window, some as an unknown token."""
        words = [word for sentence in split_sentences(answer) for word in sentence.split() if re.search(r"\w", word)]
        for word in words:
            if word not in known:
                known[word] = self.assessor.knows(word)
        return sum(known[word] for word in words) / len(words) if words else 0.0
