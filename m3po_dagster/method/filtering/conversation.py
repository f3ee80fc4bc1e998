"""From a record's conversation to the prompts it asks (sections 3.1 and 4.9)."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.unicode_form import to_form
from m3po_dagster.method.prompt import Message

NO_QUESTION = "no human turn"
NOT_ALTERNATING = "turns don't alternate"
INSTRUCTION_EMPTY = "instruction empty"
CONTEXT_EMPTY = "turn before it empty"
CONTEXT_LONG = "too much before it"

MAX_CONTEXT_TURNS = 256
MAX_CONTEXT_CHARACTERS = 100_000
"""Bounds of what stands before a question: each question repeats it, so all of them hold its square."""

Turns = Literal["first", "last", "each"]

SPEAKERS = ("human", "gpt")
TOKEN = "<image>"  # noqa: S105 - a token of a text
_ROLES = ("user", "assistant")
_IMAGE_TOKEN = re.compile(r"(\r?\n)?<image>(?:(?:\r?\n)?<image>)*(\r?\n)?")


@dataclass(frozen=True)
class Question:
    """A human turn that is asked: its number from 0, the turns up to it, and the dataset's own answer if there is one.

    `unusable` says why it makes no prompt, if it makes none; it has no turns then.
    """

    turn: int
    messages: tuple[Message, ...]
    reference: str | None
    unusable: Dropped | None = None


def questions(conversation: Sequence[tuple[str, str]], turns: Turns) -> list[Question] | Dropped:
    """The questions of a conversation: its first, its last, or each, with all turns before it as context (section 4.9).

    An assistant turn at the start answers nothing and is left out, as LLaVA's training does; the others must alternate.
    Texts come without the image token and in Unicode's composed form, so that two spellings are one prompt.
    """
    left_out = int(starts_with_answer(conversation))
    spoken = conversation[left_out:]
    if not spoken:
        return Dropped(NO_QUESTION, "conversations has no human turn")
    for number, (speaker, _) in enumerate(spoken):
        if speaker != SPEAKERS[number % 2]:
            return Dropped(NOT_ALTERNATING, f"conversations[{number + left_out}].from is {speaker[:40]!r}")
    asked = range(0, len(spoken), 2)
    if turns != "each":
        asked = asked[:1] if turns == "first" else asked[-1:]
    texts = [to_form("NFC", strip_image_token(text)) for _, text in spoken[: asked[-1] + 2]]
    before = list(itertools.accumulate(map(len, texts), initial=0))
    said = [Message(_ROLES[number % 2], text) for number, text in enumerate(texts)]
    first_empty = next((number for number, text in enumerate(texts) if not text.strip()), len(texts))
    found = []
    for at in asked:
        if at > MAX_CONTEXT_TURNS or before[at] > MAX_CONTEXT_CHARACTERS:
            why = Dropped(CONTEXT_LONG, f"{at} turns of {before[at]} characters before conversations[{at + left_out}]")
        elif first_empty <= at:
            reason = INSTRUCTION_EMPTY if first_empty == at else CONTEXT_EMPTY
            why = Dropped(reason, f"conversations[{first_empty + left_out}].value has no text")
        else:
            found.append(Question(at // 2, tuple(said[: at + 1]), texts[at + 1] if at + 1 < len(texts) else None))
            continue
        found.append(Question(at // 2, (), None, why))
    return found


def starts_with_answer(conversation: Sequence[tuple[str, str]]) -> bool:
    """Whether an assistant turn stands at the start, which answers nothing."""
    return bool(conversation) and conversation[0][0] == SPEAKERS[1]


def strip_image_token(text: str) -> str:
    """The text without <image> and the newline beside it, wherever it stands; the rest is verbatim."""

    def newline_kept(match: re.Match) -> str:
        at_an_end = match.start() == 0 or match.end() == len(match.string)
        return "" if at_an_end else match[1] or match[2] or ""

    text = _IMAGE_TOKEN.sub(newline_kept, text)
    # Removing one token can put another together, over and over: one pass that looks back removes them all.
    if TOKEN not in text:
        return text
    left: list[str] = []
    for character in text:
        left.append(character)
        if character == TOKEN[-1] and "".join(left[-len(TOKEN) :]) == TOKEN:
            del left[-len(TOKEN) :]
    return "".join(left)
