"""The prompts whose R_l another alpha or delta changes, with the texts of the old one and of the new one."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from m3po_dagster.inspector.catalogue import Catalogue, Place
from m3po_dagster.inspector.fronts import Fronts
from m3po_dagster.inspector.rows import read_rows

_ROWS_A_READ = 1 << 14
"""About a row group. What lies between prompts further apart than this is not read."""


@dataclass(frozen=True)
class Loser:
    """A candidate as R_l: its k and text, and how S weighs it against R_w."""

    k: int
    text: str
    gap: float  # MAS(R_w) - MAS
    logp_gap: float  # conf(R_w) - conf


@dataclass(frozen=True)
class Changed:
    """A prompt whose R_l changes; `chosen` is the k of its R_w, which stays."""

    prompt_id: str
    shard: str
    question: str
    image_sha256: str
    chosen: int
    before: Loser
    after: Loser


def changed_prompts(
    catalogue: Catalogue,
    fronts: Sequence[Fronts],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    skip: int,
    count: int,
) -> list[Changed]:
    """`count` of the prompts whose pick changes, after the first `skip`, in the study's order.

    `fronts` are those of the scored shards, `before` and `after` the picks of each. Raises OSError for a file that is
    not there, ValueError for one that can't be read.
    """
    places, entries = [], []
    scored = [shard for shard in catalogue.shards if shard.scored]
    for shard, front, old, new in zip(scored, fronts, before, after, strict=True):
        differs = np.flatnonzero(old != new)
        differs = differs[np.argsort(front.prompt[differs], kind="stable")]
        wanted = differs[skip : skip + count - len(places)]
        skip = max(0, skip - len(differs))
        places += [Place(shard, int(front.prompt[entry])) for entry in wanted]
        entries += [(front, int(entry), int(old[entry]), int(new[entry])) for entry in wanted]
        if len(places) == count:
            break
    found = []
    for place, texts, (front, entry, old, new) in zip(places, _texts(places), entries, strict=True):
        shard, position = place.shard, place.position
        losers = [
            Loser(k, texts[k], float(front.gap[at]), float(front.logp_gap[at]))
            for at, k in ((old, int(front.k[old])), (new, int(front.k[new])))
        ]
        found.append(
            Changed(
                prompt_id=shard.prompt_ids[position].as_py(),
                shard=shard.name,
                question=shard.questions[position].as_py(),
                image_sha256=shard.image_hashes[position].as_py(),
                chosen=int(front.winner[entry]),
                before=losers[0],
                after=losers[1],
            )
        )
    return found


def _texts(places: Sequence[Place]) -> list[dict[int, str]]:
    """For each prompt the texts of its candidates by k."""
    found: list[dict[int, str]] = [{}] * len(places)

    def read(near: Sequence[int]) -> None:
        shard = places[near[0]].shard
        spans = [_rows(places[number]) for number in near]
        start, path = spans[0][0], shard.candidates.path("data.parquet")
        try:
            table = read_rows(path, start, spans[-1][1] - start, ["k", "text"])
        except pa.ArrowException as error:
            raise ValueError(f"{path} can't be read or is damaged ({error}): remove its folder, then run") from None
        for number, (first, end) in zip(near, spans, strict=True):
            mine = table.slice(first - start, end - first)
            found[number] = dict(zip(mine["k"].to_pylist(), mine["text"].to_pylist(), strict=True))

    # Most of the time goes into unpacking, which another thread can do meanwhile.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, _near_each_other(places)))
    return found


def _rows(place: Place) -> tuple[int, int]:
    """The first row of the prompt's candidates, and the row after the last."""
    first = int(place.shard.first_row[place.position])
    return first, first + int(place.shard.n_candidates[place.position])


def _near_each_other(places: Sequence[Place]) -> Iterator[list[int]]:
    """The numbers of the places in groups whose rows one read serves, each in the order of its rows."""
    group: list[int] = []
    for number in sorted(range(len(places)), key=lambda number: (places[number].shard.name, _rows(places[number]))):
        if group:
            same = places[number].shard is places[group[0]].shard
            if not same or _rows(places[number])[1] - _rows(places[group[0]])[0] > _ROWS_A_READ:
                yield group
                group = []
        group.append(number)
    if group:
        yield group
