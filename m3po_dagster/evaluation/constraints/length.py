"""Constraints on how long an answer is: in words, in sentences, in paragraphs."""

import re
from typing import ClassVar, Literal

from pydantic import Field

from m3po_dagster.evaluation.constraints.constraint import About, Constraint
from m3po_dagster.evaluation.constraints.text import sentences, words


class _Counted(Constraint):
    about: ClassVar[About] = "length"
    n: int = Field(ge=1, strict=True, description="the number")

    def _of(self, what: str) -> str:
        return f"{self.n} {what}{'' if self.n == 1 else 's'}"


class MinWords(_Counted):
    """At least n words."""

    kind: Literal["min_words"] = Field("min_words", description="at least n words")

    def describe(self) -> str:
        return f"Use at least {self._of('word')}."

    def met(self, answer: str) -> bool:
        return len(words(answer)) >= self.n


class MaxWords(_Counted):
    """At most n words."""

    kind: Literal["max_words"] = Field("max_words", description="at most n words")

    def describe(self) -> str:
        return f"Use at most {self._of('word')}."

    def met(self, answer: str) -> bool:
        return len(words(answer)) <= self.n


class ExactWords(_Counted):
    """Exactly n words."""

    kind: Literal["exact_words"] = Field("exact_words", description="exactly n words")

    def describe(self) -> str:
        return f"Use exactly {self._of('word')}."

    def met(self, answer: str) -> bool:
        return len(words(answer)) == self.n


class MinSentences(_Counted):
    """At least n sentences."""

    kind: Literal["min_sentences"] = Field("min_sentences", description="at least n sentences")

    def describe(self) -> str:
        return f"Write at least {self._of('sentence')}."

    def met(self, answer: str) -> bool:
        return len(sentences(answer)) >= self.n


class MaxSentences(_Counted):
    """At most n sentences."""

    kind: Literal["max_sentences"] = Field("max_sentences", description="at most n sentences")

    def describe(self) -> str:
        return f"Write at most {self._of('sentence')}."

    def met(self, answer: str) -> bool:
        return len(sentences(answer)) <= self.n


class ExactSentences(_Counted):
    """Exactly n sentences."""

    kind: Literal["exact_sentences"] = Field("exact_sentences", description="exactly n sentences")

    def describe(self) -> str:
        return f"Write exactly {self._of('sentence')}."

    def met(self, answer: str) -> bool:
        return len(sentences(answer)) == self.n


class ExactParagraphs(_Counted):
    """Exactly n paragraphs, parted by blank lines."""

    kind: Literal["exact_paragraphs"] = Field("exact_paragraphs", description="exactly n paragraphs")

    def describe(self) -> str:
        return f"Write exactly {self._of('paragraph')}, with a blank line between paragraphs."

    def met(self, answer: str) -> bool:
        return len([part for part in re.split(r"\n\s*\n", answer) if part.strip()]) == self.n
