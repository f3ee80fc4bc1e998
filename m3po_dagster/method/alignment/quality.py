"""Controls of a judge: asking it again where the right outcome is known, a few prompts a shard.

The same answers in the reverse order must get the same order, the same answers beside another image must lose, and the
better answer of a known pair must win. What is asked is planned first (`plan`), so that its cost can be told before
anything is paid, and asked through the judge that scores the shard (`controls`), so that its ledger keeps the replies.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, field_validator

from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.method.alignment.known_pairs import KnownPair, read_known_pairs
from m3po_dagster.method.alignment.scorer import Batch, ScorerSettings, group_size
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.s3_files.path import DataPath
from m3po_dagster.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

FEWEST_PROMPTS = 6
"""Prompts below which a control says nothing: an interval over fewer would be too wide to tell a judge from a coin."""

Items = Sequence[tuple[Prompt, Sequence[Mapping]]]
"""Prompts with the rows of their candidates: candidate_id and text."""


class QualitySettings(Settings):
    """How the judge itself is checked, shard by shard."""

    prompts: int = Field(
        8,
        ge=0,
        le=1000,
        description="prompts of a shard, each on an image of its own, about whose answers the judge is asked again: in "
        f"the reverse order, and beside another image; 0: none, else at least {FEWEST_PROMPTS}",
    )
    known_pairs: DataPath | None = Field(
        None,
        description="JSON lines of image (a path relative to the file), question, better and worse: answers whose "
        "order the judge must get right; asked about with every shard, paid for once",
    )

    @field_validator("prompts")
    @classmethod
    def _enough(cls, prompts: int) -> int:
        if 0 < prompts < FEWEST_PROMPTS:
            raise ValueError(f"fewer than {FEWEST_PROMPTS} prompts tell nothing of a judge: set 0 or more of them")
        return prompts


class Judge(Protocol):
    """What is asked: a `MasScorer`, bound to the account that pays."""

    def score(self, batch: Batch) -> list[dict]:
        """A row an answer, in order."""
        ...

    def swapped(self) -> "Judge":
        """The same judge, the answers of each request in the reverse order."""
        ...

    def exhaustive(self) -> "Judge":
        """The same judge without its cascade."""
        ...


@dataclass(frozen=True)
class Again:
    """A prompt to be asked about again, with the answers and their candidate ids."""

    prompt: Prompt
    ids: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What the controls will ask.

    `swapped` is empty where every answer is judged by itself; `shuffled` holds prompts with another prompt's image.
    """

    swapped: tuple[Again, ...] = ()
    shuffled: tuple[Again, ...] = ()
    known: tuple[KnownPair, ...] = ()

    @property
    def reversed_batch(self) -> Batch:
        """What is asked in the reverse order."""
        return [(one.prompt, one.texts) for one in self.swapped]

    @property
    def batch(self) -> Batch:
        """What is asked as a shard is: answers beside another image, then each known prompt with its answers once."""
        texts: dict[Prompt, dict[str, None]] = {}
        for pair in self.known:
            texts.setdefault(pair.prompt, {}).update(dict.fromkeys((pair.better, pair.worse)))
        shuffled = [(one.prompt, one.texts) for one in self.shuffled]
        return [*shuffled, *((prompt, tuple(answers)) for prompt, answers in texts.items())]


@dataclass(frozen=True)
class Controls:
    """What the judge said when asked again: rows of the MAS table by candidate id, and by known pair."""

    swapped: Mapping[str, Mapping] = field(default_factory=dict)
    shuffled: Mapping[str, Mapping] = field(default_factory=dict)
    known: tuple[tuple[KnownPair, Mapping, Mapping], ...] = ()
    """Each pair with the rows of its better and its worse answer."""


def plan(
    items: Items,
    scorers: Sequence[ScorerSettings],
    settings: QualitySettings,
    seed: int,
    cascade: bool = False,
    left_out: Collection[str] = (),
) -> Plan:
    """What the controls ask about a shard: the same for the same shard, settings and seed.

    `left_out` are ids of candidates that a cascade did not ask about. Raises as `read_known_pairs`.
    """
    sampled = [
        Again(prompt, tuple(row["candidate_id"] for row in rows), tuple(row["text"] for row in rows))
        for prompt, given in _sample(items, settings.prompts, seed)
        if (rows := [row for row in given if row["candidate_id"] not in left_out])
    ]
    known = read_known_pairs(settings.known_pairs) if settings.known_pairs else ()
    # The requests of a cascade are those of its rounds: others in reverse would show what company does as well.
    in_groups = not cascade and any(group_size(scorer) > 1 for scorer in scorers)
    return Plan(tuple(sampled) if in_groups else (), tuple(_shuffled(sampled)), tuple(known))


def controls(
    judge: Judge,
    items: Items,
    table: "pa.Table",
    scorers: Sequence[ScorerSettings],
    settings: QualitySettings,
    seed: int,
    cascade: bool = False,
) -> Controls:
    """Asks the judge again, after the shard's own scores (`table`) are there. Raises what the judge raises."""
    statuses = zip(table["candidate_id"].to_pylist(), table["status"].to_pylist(), strict=True)
    asks = plan(items, scorers, settings, seed, cascade, {key for key, status in statuses if status == NOT_NEEDED})
    # What is asked here was chosen: a cascade would leave answers out.
    whole = judge.exhaustive()
    backwards = whole.swapped().score(asks.reversed_batch) if asks.swapped else []
    rows = whole.score(asks.batch) if asks.batch else []
    ids = [key for one in asks.shuffled for key in one.ids]
    keys = [(prompt, text) for prompt, texts in asks.batch[len(asks.shuffled) :] for text in texts]
    known = dict(zip(keys, rows[len(ids) :], strict=True))
    return Controls(
        dict(zip((key for one in asks.swapped for key in one.ids), backwards, strict=True)),
        dict(zip(ids, rows, strict=False)),
        tuple((pair, known[pair.prompt, pair.better], known[pair.prompt, pair.worse]) for pair in asks.known),
    )


def _sample(items: Items, prompts: int, seed: int) -> list[tuple[Prompt, Sequence[Mapping]]]:
    """Prompts by a hash of seed and id, each on an image of its own; those whose image can't be read are passed over.

    Images are told apart by their bytes: a dataset may hold one under two names.
    """
    chosen: dict[str, tuple[Prompt, Sequence[Mapping]]] = {}
    by_chance = sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item[0].prompt_id}".encode()).digest())
    for prompt, rows in by_chance:
        if len(chosen) >= prompts:
            break
        try:
            image = hashlib.sha256(prompt.image_path.read_bytes()).hexdigest()
        except OSError:
            continue
        chosen.setdefault(image, (prompt, rows))
    return list(chosen.values())


def _shuffled(sampled: Sequence[Again]) -> list[Again]:
    """Each prompt with the image of the next, the last with that of the first: nobody keeps their own."""
    if len(sampled) < 2:
        return []
    others = [*sampled[1:], sampled[0]]
    return [
        replace(one, prompt=replace(one.prompt, image_path=other.prompt.image_path))
        for one, other in zip(sampled, others, strict=True)
    ]
