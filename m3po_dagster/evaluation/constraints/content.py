"""Constraints on what an answer says: words that must stand in it, must not, or some of which must."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from m3po_dagster.evaluation.constraints.constraint import About, Constraint
from m3po_dagster.evaluation.constraints.text import folded, listed, mentions
from m3po_dagster.method.filtering.language import likeliest_language
from m3po_dagster.method.filtering.languages import LANGUAGES, near_codes

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _AboutContent(Constraint):
    about: ClassVar[About] = "content"


class IncludeWords(_AboutContent):
    """Every word or phrase stands in the answer, as whole words in any case."""

    kind: Literal["include_words"] = Field("include_words", description="each word or phrase stands in the answer")
    words: tuple[Text, ...] = Field(min_length=1, description="the words or phrases")

    def describe(self) -> str:
        return f"Include {listed(self.words, 'and')}."

    def met(self, answer: str) -> bool:
        return all(mentions(answer, word) for word in self.words)


class ExcludeWords(_AboutContent):
    """No word or phrase stands in the answer, as whole words in any case."""

    kind: Literal["exclude_words"] = Field("exclude_words", description="no word or phrase stands in the answer")
    words: tuple[Text, ...] = Field(min_length=1, description="the words or phrases")

    def describe(self) -> str:
        return f"Do not use {listed(self.words, 'or')}."

    def met(self, answer: str) -> bool:
        return not any(mentions(answer, word) for word in self.words)


class IncludeSome(_AboutContent):
    """At least n different ones of the words or phrases stand in the answer."""

    kind: Literal["include_some"] = Field(
        "include_some", description="at least n different ones of the words or phrases stand in the answer"
    )
    words: tuple[Text, ...] = Field(min_length=1, description="the words or phrases")
    n: int = Field(1, ge=1, strict=True, description="how many of them, at least")

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.n > len(self._different):
            raise ValueError(f"n is {self.n}, and there are {len(self._different)} different words")
        return self

    def describe(self) -> str:
        return f"Include at least {self.n} of {listed(self.words, 'and')}."

    def met(self, answer: str) -> bool:
        return sum(mentions(answer, word) > 0 for word in self._different) >= self.n

    @property
    def _different(self) -> set[str]:
        return set(map(folded, self.words))


class WordTimes(_AboutContent):
    """A word or phrase stands in the answer at least n times."""

    kind: Literal["word_times"] = Field("word_times", description="a word stands in the answer at least n times")
    word: Text = Field(description="the word or phrase")
    n: int = Field(ge=1, strict=True, description="how often, at least")

    def describe(self) -> str:
        return f'Use "{self.word}" at least {self.n} time{"" if self.n == 1 else "s"}.'

    def met(self, answer: str) -> bool:
        return mentions(answer, self.word) >= self.n


class InLanguage(_AboutContent):
    """The likeliest language of the answer's first 500 characters, by the model that the language filter asks, is this.

    A few words tell little: put it on longer answers.
    """

    kind: Literal["language"] = Field("language", description="the answer is in this language")
    code: str = Field(description="code of the language, for example en, de, zh")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.code not in LANGUAGES:
            near = ", ".join(near_codes(self.code))
            raise ValueError(f"no language {self.code!r}" + (f"; near it: {near}" if near else ""))
        return self

    def describe(self) -> str:
        return f"Answer in {LANGUAGES[self.code]}."

    def met(self, answer: str) -> bool:
        return likeliest_language(answer) == self.code
