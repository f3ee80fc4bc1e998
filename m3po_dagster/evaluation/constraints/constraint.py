"""What a rule-checkable constraint on an answer is, and when it is met: strictly, or loosely as IFEval has it."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from m3po_dagster.settings import Settings

About = Literal["length", "content", "format"]


class Constraint(Settings, ABC):
    """A demand on an answer that can be checked without a judge, from the answer's text alone."""

    about: ClassVar[About]
    """What it is about: how long the answer is, what it says, or the form it takes."""
    marks_suffice: ClassVar[bool] = False
    """Whether an answer without letter or digit can be one at all: "[]" is JSON."""
    kind: str

    @abstractmethod
    def describe(self) -> str:
        """The demand as a sentence of the instruction."""

    @abstractmethod
    def met(self, answer: str) -> bool:
        """Whether this text meets it, to the letter."""


def met_strictly(constraint: Constraint, answer: str) -> bool:
    """Whether the answer as it stands meets the constraint.

    An empty answer meets none; one without letter or digit says nothing and is empty too, where marks don't suffice.
    """
    says_something = bool(answer.strip()) if constraint.marks_suffice else any(map(str.isalnum, answer))
    return says_something and constraint.met(answer)


def met_loosely(constraint: Constraint, answer: str) -> bool:
    """Whether one of IFEval's eight variants of the answer meets the constraint."""
    return any(met_strictly(constraint, variant) for variant in variants(answer))


def variants(answer: str) -> tuple[str, ...]:
    """The answer, without its first line, without its last, without both; and each of them without "*".

    So an opening like "Sure, here you are:", a closing remark and Markdown emphasis are forgiven.
    """
    lines = answer.split("\n")
    cut = (answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return (*cut, *(text.replace("*", "") for text in cut))
