"""How a ledger lies in a bucket: streams of lines, each in pieces that are written once and never changed.

    <root>/<model>/<stream>.<start>-<end>.jsonl    the bytes of a stream from `start` to before `end`, whole lines

A stream is what one writer adds, at most some MB. Pieces may overlap: where several small ones were merged into a
larger one, and some are not removed yet. They then hold the same bytes, so it does not matter which is read. A ledger
of a folder that was copied into the bucket is a ledger of streams of one piece each, without `start` and `end`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Bucket

SUFFIX = ".jsonl"
# Hidden folders (who is alive, who asks what) come first in a listing, and no name of a model begins like them.
_PAST_HIDDEN = ".~"
_NAME = re.compile(r"(?P<folder>[^/.][^/]*)/(?P<name>[^/]+?)(?:\.(?P<start>\d{10})-(?P<end>\d{10}))?\.jsonl")


class Stream(NamedTuple):
    """A stream by the folder of its model and its own name."""

    folder: str
    name: str

    @property
    def file(self) -> str:
        """Its file in a copy of the ledger, as in a ledger of a folder."""
        return f"{self.folder}/{self.name}{SUFFIX}"


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to before `end` of a stream."""

    stream: Stream
    start: int
    end: int
    key: str

    @classmethod
    def of(cls, stream: Stream, start: int, end: int) -> "Piece":
        """The piece to write."""
        return cls(stream, start, end, f"{stream.folder}/{stream.name}.{start:010d}-{end:010d}{SUFFIX}")


def listed(bucket: Bucket) -> dict[Stream, list[Piece]]:
    """Every piece by its stream, a request for each 1000. Raises StoreError, also for an object of another size."""
    found: dict[Stream, list[Piece]] = {}
    for item in bucket.list(after=_PAST_HIDDEN):
        if (named := _NAME.fullmatch(item.key)) is None:
            continue
        start, end = int(named["start"] or 0), int(named["end"] or item.size)
        if end - start != item.size:
            raise StoreError(
                f"{bucket.where(item.key)} has {item.size} bytes where its name says {end - start}: it is not what was "
                "written; bring it back from a version of the bucket, or remove it: its replies are then asked again"
            )
        stream = Stream(named["folder"], named["name"])
        found.setdefault(stream, []).append(Piece(stream, start, end, item.key))
    return found


def furthest(pieces: Iterable[Piece], position: int) -> Piece | None:
    """The piece that holds the byte at `position` and leads furthest; None where none holds it."""
    holding = [piece for piece in pieces if piece.start <= position < piece.end]
    return max(holding, key=lambda piece: piece.end, default=None)


def whole_until(pieces: Iterable[Piece]) -> int:
    """How many bytes from the first on the pieces hold together."""
    pieces, position = list(pieces), 0
    while piece := furthest(pieces, position):
        position = piece.end
    return position


def end_of(streams: Mapping[Stream, list[Piece]], stream: Stream) -> int:
    """The end of a stream, 0 where there is none."""
    return max((piece.end for piece in streams.get(stream, ())), default=0)
