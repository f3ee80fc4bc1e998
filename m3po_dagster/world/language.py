"""What is said about scenes: questions, their true answers, and reading an answer's claims back out of its text.

A small controlled English. `Question.text` and `parse_question` are each other's inverse, and `claims` understands
every answer `true_answer` gives, so that an answer can be checked against cells without knowing who wrote it.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from m3po_dagster.world.scenes import POSITIONS, Cells, Thing, things_in
from m3po_dagster.world.tiles import COLOURS, SHAPES

Kind = Literal["describe", "exists", "count", "what_at", "is_shape", "what_shape", "is_count", "is_at", "is_colour"]
KINDS: tuple[Kind, ...] = get_args(Kind)
YES_NO_KINDS: tuple[Kind, ...] = ("exists", "is_shape", "is_count", "is_at", "is_colour")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
SHORT_REQUEST = "Please answer yes or no."
# Every word of every question and answer; punctuation is the tokenizer's own.
WORDS = (
    *("Describe", "Is", "Are", "How", "What", "There", "The", "Yes", "No", "Please", "answer", "yes", "or", "no"),
    *("there", "is", "are", "nothing", "the", "this", "a", "at", "in", "image", "object", "objects", "many", "shape"),
    *("top", "bottom", "left", "right", *NUMBERS, *COLOURS, *SHAPES),
)


@dataclass(frozen=True)
class Question:
    """One question. Which fields are set depends on `kind`; `text` shows how each kind reads.

    `in_image` (kind "exists") closes as POPE does, "in the image", or with `short` as MME does, "in this image";
    `short` (yes/no kinds) asks for a bare yes or no.
    """

    kind: Kind
    thing: Thing | None = None
    colour: str | None = None
    shape: str | None = None
    position: str | None = None
    count: int | None = None
    in_image: bool = False
    short: bool = False

    @property
    def text(self) -> str:
        """The question as asked."""
        match self.kind:
            case "describe":
                text = "Describe the image."
            case "exists":
                closing = (" in this image" if self.short else " in the image") if self.in_image else ""
                text = f"Is there a {self.thing}{closing}?"
            case "count":
                text = "How many objects are there?"
            case "what_at":
                text = f"What is at the {self.position}?"
            case "is_shape":
                text = f"Is the {self.colour} object a {self.shape}?"
            case "what_shape":
                text = f"What shape is the {self.colour} object?"
            case "is_count":
                text = f"{'Is' if self.count == 1 else 'Are'} there {_number_of_objects(self.count)}?"
            case "is_at":
                text = f"Is the {self.thing} at the {self.position}?"
            case "is_colour":
                text = f"Is the {self.shape} {self.colour}?"
        return f"{text} {SHORT_REQUEST}" if self.short else text


@dataclass(frozen=True)
class Claim:
    """That an object is there, and where, if the answer says so."""

    thing: Thing
    position: str | None = None


@dataclass(frozen=True)
class Claims:
    """Everything an answer asserts.

    `verdict` is its leading Yes or No; `absent` names what it denies ("red circle", "red object", "circle");
    `empty` the positions (or "image") it calls empty; `unparsed` the sentences that are not understood.
    """

    verdict: bool | None = None
    present: tuple[Claim, ...] = ()
    absent: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    count: int | None = None
    unparsed: tuple[str, ...] = ()


_COLOUR, _SHAPE, _POSITION = (f"({'|'.join(words)})" for words in (COLOURS, SHAPES, POSITIONS))
_NUMBER = f"({'|'.join(NUMBERS)}) objects?"
_QUESTIONS: tuple[tuple[Kind, re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (kind, re.compile(pattern), fields)
    for kind, pattern, fields in (
        ("describe", r"Describe the image\.", ()),
        ("exists", rf"Is there a {_COLOUR} {_SHAPE}( in (?:the|this) image)?\?", ("thing", "in_image")),
        ("count", r"How many objects are there\?", ()),
        ("what_at", rf"What is at the {_POSITION}\?", ("position",)),
        ("is_shape", rf"Is the {_COLOUR} object a {_SHAPE}\?", ("colour", "shape")),
        ("what_shape", rf"What shape is the {_COLOUR} object\?", ("colour",)),
        ("is_count", rf"(?:Is|Are) there {_NUMBER}\?", ("count",)),
        ("is_at", rf"Is the {_COLOUR} {_SHAPE} at the {_POSITION}\?", ("thing", "position")),
        ("is_colour", rf"Is the {_SHAPE} {_COLOUR}\?", ("shape", "colour")),
    )
)
_PRESENT = tuple(
    re.compile(pattern)
    for pattern in (
        rf"there is a (?P<colour>{_COLOUR}) (?P<shape>{_SHAPE})(?: at the (?P<position>{_POSITION}))?",
        rf"the (?P<colour>{_COLOUR}) object is a (?P<shape>{_SHAPE})",
        rf"the (?P<colour>{_COLOUR}) (?P<shape>{_SHAPE}) is at the (?P<position>{_POSITION})",
        rf"the (?P<shape>{_SHAPE}) is (?P<colour>{_COLOUR})",
    )
)
_ABSENT = re.compile(rf"there is no ({_COLOUR} {_SHAPE}|{_COLOUR} object|{_SHAPE})")
_EMPTY = re.compile(rf"there is nothing (?:at the {_POSITION}|in the (image))")
_COUNT = re.compile(rf"there (?:is|are) {_NUMBER}")


def parse_question(text: str) -> Question:
    """The question that reads as `text`. Raises ValueError when no kind of question does."""
    short = text.endswith(f" {SHORT_REQUEST}")
    body = text.removesuffix(f" {SHORT_REQUEST}")
    for kind, pattern, fields in _QUESTIONS:
        if (match := pattern.fullmatch(body)) and (kind in YES_NO_KINDS or not short):
            values, given = list(match.groups()), {}
            for field in fields:
                if field == "thing":
                    given[field] = Thing(values.pop(0), values.pop(0))
                elif field == "in_image":
                    given[field] = bool(values.pop(0))
                elif field == "count":
                    given[field] = NUMBERS.index(values.pop(0))
                else:
                    given[field] = values.pop(0)
            return Question(kind, **given, short=short)
    raise ValueError(f"not a question about a scene: {text!r}")


def kind_of(question: str) -> Kind | None:
    """The kind of a question's text, or None for a text that is no question about a scene."""
    try:
        return parse_question(question).kind
    except ValueError:
        return None


def true_answer(cells: Cells, question: Question) -> str:
    """The right answer about a scene with these cells, also where the question assumes what is not there."""
    verdict, statement = _statement(cells, question)
    if verdict is None:
        return f"{statement[0].upper()}{statement[1:]}."
    word = "Yes" if verdict else "No"
    return f"{word}." if question.short else f"{word}, {statement}."


def describe(things: list[Thing]) -> str:
    """A description that names these objects in this order."""
    return " ".join(f"There is a {thing}." for thing in things) or "There is nothing in the image."


def claims(text: str) -> Claims:
    """What an answer asserts. Never raises: sentences outside the language end up in `unparsed`."""
    verdict, present, absent, empty, count, unparsed = None, [], [], [], None, []
    sentences = [sentence for part in text.split(".") if (sentence := " ".join(part.split()))]
    for number, sentence in enumerate(sentences):
        body = sentence[0].lower() + sentence[1:]
        if number == 0 and (lead := re.match(r"(yes|no)\b,?\s*", body)):
            verdict, body = lead[1] == "yes", body[lead.end() :]
            if not body:
                continue
        if match := next((match for pattern in _PRESENT if (match := pattern.fullmatch(body))), None):
            found = match.groupdict()
            present.append(Claim(Thing(found["colour"], found["shape"]), found.get("position")))
        elif match := _ABSENT.fullmatch(body):
            absent.append(match[1])
        elif match := _EMPTY.fullmatch(body):
            empty.append(match[1] or match[2])
        elif match := _COUNT.fullmatch(body):
            count = NUMBERS.index(match[1])
        else:
            unparsed.append(sentence)
    return Claims(verdict, tuple(present), tuple(absent), tuple(empty), count, tuple(unparsed))


def _statement(cells: Cells, question: Question) -> tuple[bool | None, str]:
    things = things_in(cells)
    where = {thing: position for thing, position in zip(cells, POSITIONS, strict=True) if thing is not None}
    match question.kind:
        case "describe":
            description = describe(things)
            return None, description.removesuffix(".")
        case "exists":
            if question.thing in where:
                return True, f"there is a {question.thing} at the {where[question.thing]}"
            return False, f"there is no {question.thing}"
        case "count":
            return None, _there_are(len(things))
        case "what_at":
            thing = cells[POSITIONS.index(question.position)]
            return None, f"there is {f'a {thing}' if thing else 'nothing'} at the {question.position}"
        case "is_shape" | "what_shape":
            thing = next((thing for thing in things if thing.colour == question.colour), None)
            statement = (
                f"the {thing.colour} object is a {thing.shape}" if thing else f"there is no {question.colour} object"
            )
            asks = question.kind == "is_shape"
            return (thing is not None and thing.shape == question.shape) if asks else None, statement
        case "is_count":
            return len(things) == question.count, _there_are(len(things))
        case "is_at":
            position = where.get(question.thing)
            if position is None:
                return False, f"there is no {question.thing}"
            return position == question.position, f"the {question.thing} is at the {position}"
        case "is_colour":
            alike = [thing for thing in things if thing.shape == question.shape]
            if not alike:
                return False, f"there is no {question.shape}"
            hit = next((thing for thing in alike if thing.colour == question.colour), None)
            return hit is not None, f"the {question.shape} is {(hit or alike[0]).colour}"
    raise ValueError(f"unknown kind of question: {question.kind}")


def _number_of_objects(count: int) -> str:
    return f"{NUMBERS[count]} object{'' if count == 1 else 's'}"


def _there_are(count: int) -> str:
    return f"there {'is' if count == 1 else 'are'} {_number_of_objects(count)}"
