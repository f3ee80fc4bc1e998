"""How a served judge's reply is read: grades by id, and for every id without one the reason.

A reply that is not what was asked for gives no grade: nothing is guessed, rounded or averaged in. Two things are
forgiven, since they leave no doubt: a code fence or prose around one JSON object, and ids nobody asked for beside the
ones that were.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from m3po_dagster.method.alignment.judge_request import HIGHEST, LOWEST, Aspect

REFUSED, CUT_OFF, EMPTY = "refused", "reply cut off", "empty reply"
UNREADABLE, OUT_OF_RANGE = "reply can't be read", "grade out of range"
MISSING, TWICE = "no grade in the reply", "graded twice in the reply"

_Grade = Annotated[int, Field(strict=True, ge=LOWEST, le=HIGHEST)]


def _is_text(value: str) -> str:
    value.encode()  # half of a surrogate pair, which JSON can spell, is no text and fits in no table
    return value


Evidence = Annotated[str, AfterValidator(_is_text)]
"""A judge's words, of any length."""


class Grades(BaseModel):
    """One answer's grades, whole numbers 1 to 5, and the evidence for them."""

    evidence: Evidence
    relevance: _Grade
    accuracy: _Grade
    adherence: _Grade

    def of(self, aspect: Aspect) -> int:
        """The grade for an aspect."""
        return getattr(self, aspect)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


_Tokens = Annotated[int, Field(ge=0)]


class _Details(BaseModel):
    cached_tokens: _Tokens | None = None


class _Usage(BaseModel):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class _Billed(BaseModel):
    usage: _Usage | None = None


@dataclass(frozen=True)
class Reading:
    """What a reply gives for the ids it was asked for: each has an entry, its grades, or a problem.

    `said` is the judge's own text, for a person and for the judge itself when it is asked to repair it; empty where
    there is none. `declined`: the model won't answer this, and asking it to mend its reply would not change that.
    """

    grades: Mapping[str, BaseModel] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    said: str = ""
    declined: bool = False


@dataclass(frozen=True)
class Usage:
    """The tokens of a reply as its endpoint counts them; None where it does not."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None


def mean_grade(grades: Iterable[float]) -> float:
    """The mean of grades, mapped from [1, 5] to [0, 1]."""
    return (fmean(grades) - LOWEST) / (HIGHEST - LOWEST)


def read_usage(body: str) -> Usage:
    """The tokens that the body of a chat completion says it took."""
    try:
        used = _Billed.model_validate_json(body).usage or _Usage()
    except ValidationError:
        return Usage()
    details = used.prompt_tokens_details or _Details()
    return Usage(used.prompt_tokens, details.cached_tokens, used.completion_tokens)


def read_reply(body: str, models: Mapping[str, type[BaseModel]]) -> Reading:
    """What the body of a chat completion gives for each id; `models` says by id what its entry must hold."""
    try:
        choices = _Completion.model_validate_json(body).choices
    except ValidationError:
        return _none(models, UNREADABLE)
    if not choices:
        return _none(models, EMPTY)
    message, ended = choices[0].message, choices[0].finish_reason
    said = message.content or ""
    if message.refusal or ended == "content_filter":
        return _none(models, REFUSED, message.refusal or said, declined=True)
    if ended == "length":
        return _none(models, CUT_OFF, said)
    if not said.strip():
        return _none(models, EMPTY)
    entries = _entries(said)
    return _none(models, UNREADABLE, said) if entries is None else _read_entries(entries, models, said)


def _none(ids: Iterable[str], problem: str, said: str = "", declined: bool = False) -> Reading:
    return Reading(problems=dict.fromkeys(ids, problem), said=said, declined=declined)


def _read_entries(entries: Sequence[Any], models: Mapping[str, type[BaseModel]], said: str) -> Reading:
    named = [(entry["id"], entry) for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    times = Counter(key for key, _ in named)
    grades: dict[str, BaseModel] = {}
    problems = {key: MISSING for key in models if key not in times} | {key: TWICE for key in models if times[key] > 1}
    for key, entry in named:
        if key in models and times[key] == 1:
            try:
                grades[key] = models[key].model_validate(entry)
            except ValidationError as error:
                outside = any(one["type"] in ("greater_than_equal", "less_than_equal") for one in error.errors())
                problems[key] = OUT_OF_RANGE if outside else UNREADABLE
    return Reading(grades, {key: problems[key] for key in models if key in problems}, said)


def _entries(said: str) -> list[Any] | None:
    """The list of grades in a judge's text; None when there is none, or more than one."""
    found = [
        value["grades"] for value in _objects(said) if isinstance(value, dict) and isinstance(value.get("grades"), list)
    ]
    return found[0] if len(found) == 1 else None


def _objects(said: str) -> Iterator[Any]:
    """Every JSON object that stands in a text, outermost ones only."""
    decoder, start = json.JSONDecoder(), said.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(said, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield value
        start = said.find("{", end)
