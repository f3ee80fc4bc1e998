"""From the JSON of a set to its constraints: {"kind": "max_words", "n": 10}."""

from functools import reduce
from operator import or_
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from m3po_dagster.evaluation.constraints.constraint import Constraint
from m3po_dagster.evaluation.constraints.content import (
    ExcludeWords,
    IncludeSome,
    IncludeWords,
    InLanguage,
    WordTimes,
)
from m3po_dagster.evaluation.constraints.form import (
    Bullets,
    EndsWith,
    IsJson,
    Lowercase,
    NoCommas,
    OneOf,
    Quoted,
    SentencesStartWith,
    StartsWith,
    Uppercase,
)
from m3po_dagster.evaluation.constraints.length import (
    ExactParagraphs,
    ExactSentences,
    ExactWords,
    MaxSentences,
    MaxWords,
    MinSentences,
    MinWords,
)
from m3po_dagster.evaluation.question import BenchmarkError

KINDS: tuple[type[Constraint], ...] = (
    MinWords, MaxWords, ExactWords, MinSentences, MaxSentences, ExactSentences, ExactParagraphs,
    IncludeWords, ExcludeWords, IncludeSome, WordTimes, InLanguage,
    StartsWith, EndsWith, SentencesStartWith, Lowercase, Uppercase, NoCommas, Bullets, IsJson, OneOf, Quoted,
)  # fmt: skip
"""Every kind of constraint."""

_ONE: TypeAdapter[Constraint] = TypeAdapter(Annotated[reduce(or_, KINDS), Field(discriminator="kind")])


def read_constraints(values: object, where: str) -> tuple[Constraint, ...]:
    """The constraints of a line. Raises BenchmarkError that names `where`, the constraint and its field."""
    if not isinstance(values, list) or not values:
        raise BenchmarkError(f"{where}: constraints: expected a list of at least one object")
    found = []
    for number, value in enumerate(values, start=1):
        try:
            found.append(_ONE.validate_python(value))
        except ValidationError as error:
            raise BenchmarkError(f"{where}: constraints: {_problem(number, error)}") from None
    return tuple(found)


def _problem(number: int, error: ValidationError) -> str:
    first = error.errors()[0]
    # The first part of a place is the kind, which the union was told by.
    field = ".".join(map(str, first["loc"][1:]))
    return f"number {number}{f', {field}' if field else ''}: {first['msg'].removeprefix('Value error, ')}"
