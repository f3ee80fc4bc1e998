"""Adds replies to a ledger in a bucket: all that threads have at one moment in one object, small objects merged later.

A line lies in a local spill file first. It stays there until the bucket has it, so that neither a kill nor a service
that is away loses a reply that was paid for: `spills.py` sends it from the next process of this machine.
"""

import logging
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from m3po_dagster.bucket_ledger.coalesced import Coalesced
from m3po_dagster.bucket_ledger.mirror import Mirror
from m3po_dagster.bucket_ledger.pieces import Piece, Stream
from m3po_dagster.method.alignment.ledger_writer import Writer
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Bucket

FAN = 16
"""Pieces of one size that are merged into one of the next: a line is uploaded once for each power of it."""
STREAM_BYTES = 16 << 20
"""Where a stream ends and is merged into one object."""
_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class _Open:
    """A stream that is being written."""

    stream: Stream
    spill: Path
    waiting: list[bytes] = field(default_factory=list)
    sent: int = 0
    """How many of its bytes the bucket has."""
    pieces: list[tuple[int, Piece]] = field(default_factory=list)
    """What it lies in, in order, each with how often it was merged."""


class BucketWriter:
    """Adds lines to the folder of a model. Safe to use from many threads."""

    def __init__(self, bucket: Bucket, mirror: Mirror, spills: Path, folder: str) -> None:
        self._bucket, self._mirror, self._folder = bucket, mirror, folder
        self._spill = Writer(spills / folder)
        self._lock, self._merging = threading.Lock(), threading.Lock()
        self._open: list[_Open] = []
        self._send = Coalesced(self._send_waiting)

    def add(self, line: bytes) -> None:
        """Add a line; the bucket has it when this returns.

        Raises StoreError when the bucket does not take it: it is in the spill file then. OSError when this machine's
        disk does not take it: the bucket has it then.
        """
        with self._lock:
            try:
                self._spill.add(line)
            except OSError:
                self._send_alone(line)
                raise
            stream = Stream(self._folder, self._spill.path.stem)
            if not self._open or self._open[-1].stream != stream:
                self._open.append(_Open(stream, self._spill.path))
            self._open[-1].waiting.append(line)
        try:
            self._send()
        except StoreError as error:
            raise StoreError(
                f"{error}. The reply lies in {self._spill.path} on this machine: the next run here sends it, or "
                "`m3po judge ledger`"
            ) from error
        self._tidy(end=False)

    def close(self) -> None:
        """Merge what each stream lies in into one object. Raises StoreError and OSError; then spill files stay."""
        self._send()
        self._tidy(end=True)

    def _send_waiting(self) -> None:
        with self._lock:
            streams = [one for one in self._open if one.waiting]
        for one in streams:
            with self._lock:
                lines = list(one.waiting)
            body = b"".join(lines)
            piece = Piece.of(one.stream, one.sent, one.sent + len(body))
            if self._bucket.put_if_absent(piece.key, body) is None:
                raise StoreError(f"{self._bucket.where(piece.key)} is another writer's: run again")
            with self._lock:
                del one.waiting[: len(lines)]
                one.sent = piece.end
                one.pieces.append((0, piece))
            self._mirror.write(one.stream, piece.start, body)

    def _send_alone(self, line: bytes) -> None:
        """A line that found no room on this machine, as a stream of its own."""
        stream = Stream(self._folder, f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}")
        self._bucket.put_if_absent(Piece.of(stream, 0, len(line)).key, line)

    def _tidy(self, end: bool) -> None:
        """Merge small pieces, all of them where a stream ends; a stream that is large, or `end`s, is begun no more."""
        if not self._merging.acquire(blocking=end):
            return
        try:
            for one in list(self._open):
                with self._lock:
                    ended = not one.waiting and (end or one is not self._open[-1] or one.sent >= STREAM_BYTES)
                    if ended:
                        # Everything is in the bucket; without its file the writer begins the next stream.
                        one.spill.unlink(missing_ok=True)
                        self._open.remove(one)
                try:
                    self._merge(one, ended)
                except StoreError as error:
                    _LOG.warning("%s; small objects stay until `m3po judge ledger --compact`", error)
        finally:
            self._merging.release()

    def _merge(self, one: _Open, all_of_them: bool) -> None:
        while run := _run(one.pieces, all_of_them):
            first, last = run[0][1], run[-1][1]
            merged = Piece.of(one.stream, first.start, last.end)
            body = self._mirror.read(one.stream, merged.start, merged.end)
            if body is None:
                return  # somebody removed the copy
            self._bucket.put_if_absent(merged.key, body)
            with self._lock:
                at = one.pieces.index(run[0])
                one.pieces[at : at + len(run)] = [(run[0][0] + 1, merged)]
            self._bucket.remove_all([piece.key for _, piece in run])


def _run(pieces: list[tuple[int, Piece]], all_of_them: bool) -> list[tuple[int, Piece]]:
    """Neighbours to merge: the first FAN that were merged equally often, or all; [] where there are none."""
    if all_of_them:
        return list(pieces) if len(pieces) > 1 else []
    for start in range(len(pieces) - FAN + 1):
        run = pieces[start : start + FAN]
        if run[0][0] == run[-1][0]:
            return run
    return []
