"""A seeded subset of a source's records: those whose id has the smallest hash (a named stand-in for "the 80K")."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from m3po_dagster.datasets.readers import read_source
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.datasets.settings import AnySource


def records_of(source: AnySource, max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The records of a source, of one with `take` those that it takes, in their order; malformed ones included.

    With `take` the files are read twice. Raises DatasetError as `read_source` does.
    """
    if source.take is None:
        return read_source(source, max_record_bytes)
    subset = Subset.of(read_source(source, max_record_bytes), source.take, source.seed)
    return subset.of_those(read_source(source, max_record_bytes))


class Subset:
    """Which records are taken: whose hash of seed, id and content lies below a bound.

    The file's order doesn't matter, and of records added later only those below the bound take another's place.
    """

    def __init__(self, seed: int, bound: int, at_bound: int) -> None:
        self._seed, self._bound, self._at_bound = seed, bound, at_bound

    @classmethod
    def of(cls, records: Iterable[Record | Malformed], take: int, seed: int) -> "Subset":
        """The subset of `take` well-formed records, of all where there are no more; 8 bytes a record are held."""
        keys = np.fromiter((_key(item, seed) for item in records if isinstance(item, Record)), np.uint64)
        if take >= len(keys):
            return cls(seed, 1 << 64, 0)
        bound = int(np.partition(keys, take - 1)[take - 1])
        return cls(seed, bound, take - int((keys < bound).sum()))

    def of_those(self, records: Iterable[Record | Malformed]) -> Iterator[Record | Malformed]:
        """Those of `records` that are taken, in their order; malformed ones are always among them, to be counted."""
        left = self._at_bound
        for item in records:
            if isinstance(item, Malformed):
                yield item
                continue
            key = _key(item, self._seed)
            # Records that are equal to the letter have one hash: as many of them as there is room for.
            if key < self._bound or (key == self._bound and left > 0):
                left -= key == self._bound
                yield item


def _key(record: Record, seed: int) -> int:
    text = f"{seed} {record.sha256} {record.source_id}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
