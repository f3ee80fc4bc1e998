"""The texts of some prompts' candidates, out of millions: close prompts share a read, and what was read is kept."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from m3po_dagster.inspector.catalogue import Place
from m3po_dagster.inspector.kept import Kept
from m3po_dagster.inspector.rows import read_rows

_ROWS_A_READ = 1 << 14
"""About a row group. What lies between prompts further apart than this is not read."""

_KEPT_PROMPTS = 1024
"""32 answers of 60 words each: some 16 MB. A slider on its way changes much the same prompts from point to point."""


class CandidateTexts:
    """Reads texts by prompt."""

    def __init__(self) -> None:
        self._kept: Kept[dict[int, str]] = Kept(_KEPT_PROMPTS)

    def of(self, places: Sequence[Place]) -> list[dict[int, str]]:
        """For each prompt, which must have candidates, their texts by k.

        Raises OSError for a file that is not there, ValueError for one that can't be read.
        """
        by_key = {(place.shard.content, place.position): place for place in places}
        return self._kept.get_all(list(by_key), lambda lacking: _read([by_key[key] for key in lacking]))


def _read(places: Sequence[Place]) -> list[dict[int, str]]:
    found: list[dict[int, str]] = [{}] * len(places)

    def read(near: Sequence[int]) -> None:
        spans = [_rows(places[number]) for number in near]
        start, path = spans[0][0], places[near[0]].shard.candidates.path("data.parquet")
        try:
            table = read_rows(path, start, spans[-1][1] - start, ["k", "text"])
        except pa.ArrowException as error:
            raise ValueError(
                f"{path} can't be read or is damaged ({error}): run `m3po doctor store --repair`"
            ) from None
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
