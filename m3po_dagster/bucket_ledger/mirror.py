"""A copy of a ledger in a bucket: a local folder laid out as any ledger, in which only what is new is fetched.

Streams only ever grow, and everybody writes the same bytes at the same place: processes share a copy without a lock.
"""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from m3po_dagster.bucket_ledger.pieces import Piece, Stream, end_of, furthest, listed
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Bucket

_AT_ONCE = 8
_LOOKS = 5
_PAUSE_SECONDS = 0.2


class _Gone(Exception):
    """A piece was merged into a larger one after it was listed."""


class Mirror:
    """The copy in `folder`. Safe to use from many threads and processes."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self.folder, self._bucket = folder, bucket

    def catch_up(self) -> None:
        """Fetch what the bucket has and the folder has not. Raises StoreError and OSError."""
        for _ in range(_LOOKS):
            streams = listed(self._bucket)
            news = [stream for stream in streams if self.size(stream) < end_of(streams, stream)]
            try:
                self._fetch_all(news, streams)
                return
            except _Gone as gone:
                missing = gone
                time.sleep(_PAUSE_SECONDS)
        raise StoreError(
            f"{self._bucket.where(str(missing))} is missing: bring it back from a version of the bucket, or remove the "
            "other objects of that stream: its replies are then asked again"
        )

    def _fetch_all(self, news: list[Stream], streams: Mapping[Stream, list[Piece]]) -> None:
        if len(news) == 1:
            self._fetch(news[0], streams[news[0]])
        elif news:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ledger") as pool:
                for _ in pool.map(lambda stream: self._fetch(stream, streams[stream]), news):
                    pass

    def _fetch(self, stream: Stream, pieces: list[Piece]) -> None:
        position, end = self.size(stream), max(piece.end for piece in pieces)
        while position < end:
            piece = furthest(pieces, position)
            if piece is None:
                raise _Gone(f"the object that holds byte {position} of {stream.file}")
            body = self._bucket.get_range(piece.key, position - piece.start, piece.end - position)
            if body is None:
                raise _Gone(piece.key)
            self.write(stream, position, body)
            position = piece.end

    def write(self, stream: Stream, position: int, body: bytes) -> None:
        """Put bytes of a stream at their place. Raises OSError.

        Where the copy lacks those before them, because somebody removed it, nothing is written: the next look fetches
        them all.
        """
        path = self.folder / stream.file
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size >= position:
                rest, at = memoryview(body), 0
                while at < len(body):
                    at += os.pwrite(descriptor, rest[at:], position + at)
                # A power cut may leave a size without its bytes, which nobody would fetch again.
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, stream: Stream, start: int, end: int) -> bytes | None:
        """Bytes of a stream, None where the copy lacks some of them."""
        try:
            with open(self.folder / stream.file, "rb") as file:
                file.seek(start)
                body = file.read(end - start)
        except FileNotFoundError:
            return None
        return body if len(body) == end - start else None

    def size(self, stream: Stream) -> int:
        """How many bytes of a stream the copy has."""
        try:
            return os.stat(self.folder / stream.file).st_size
        except FileNotFoundError:
            return 0
