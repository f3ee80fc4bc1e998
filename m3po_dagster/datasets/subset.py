"""A seeded subset of a source's records: those whose id has the smallest hash (a named stand-in for "the 80K")."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from m3po_dagster.datasets.readers import read_source
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.datasets.settings import AnySource

Key = tuple[int, int]
_KEY = np.dtype([("id", np.uint64), ("content", np.uint64)])
_ABOVE_ALL: Key = (1 << 64, 0)


def records_of(source: AnySource, max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The records of a source, of one with `take` those that it takes, in their order; malformed ones included.

    With `take` the files are read twice. Raises DatasetError as `read_source` does.
    """
    if source.take is None:
        return read_source(source, max_record_bytes)
    subset = Subset.of(read_source(source, max_record_bytes), source.take, source.seed)
    return subset.of_those(read_source(source, max_record_bytes))


class Subset:
    """Which records are taken: whose key lies below a bound.

    A key is a hash of the seed and the record's id, then one of its content, which parts records of one id. Where a
    record has no id of its own its content takes the id's place: its number would change with the file's order. So the
    order doesn't matter, and of records added later only those below the bound take another's place.
    """

    def __init__(self, seed: int, bound: Key, at_bound: int) -> None:
        self._seed, self._bound, self._at_bound = seed, bound, at_bound

    @classmethod
    def of(cls, records: Iterable[Record | Malformed], take: int, seed: int) -> "Subset":
        """The subset of `take` well-formed records, of all where there are no more; 16 bytes a record are held."""
        keys = np.fromiter((_key(item, seed) for item in records if isinstance(item, Record)), _KEY)
        if take >= len(keys):
            return cls(seed, _ABOVE_ALL, 0)
        of_id = int(np.partition(keys["id"], take - 1)[take - 1])
        left = take - int((keys["id"] < of_id).sum())
        tied = keys["content"][keys["id"] == of_id]
        of_content = int(np.partition(tied, left - 1)[left - 1])
        return cls(seed, (of_id, of_content), left - int((tied < of_content).sum()))

    def of_those(self, records: Iterable[Record | Malformed]) -> Iterator[Record | Malformed]:
        """Those of `records` that are taken, in their order; malformed ones are always among them, to be counted."""
        left = self._at_bound
        for item in records:
            if isinstance(item, Malformed):
                yield item
                continue
            key = _key(item, self._seed)
            # Records that are equal to the letter have one key: as many of them as there is room for.
            if key < self._bound or (key == self._bound and left > 0):
                left -= key == self._bound
                yield item


def _key(record: Record, seed: int) -> Key:
    content = hashlib.sha256(record.sha256.encode("ascii"))
    content.update(record.image_bytes or b"")
    named = f"id {record.source_id}" if record.own_id else f"content {content.hexdigest()}"
    return _number(hashlib.sha256(f"{seed} {named}".encode()).digest()), _number(content.digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")
