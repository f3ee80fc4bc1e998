"""Replies that a process of this machine took and could not send: they go to the bucket from the next one."""

import fcntl
import logging
import os
from pathlib import Path

from m3po_dagster.bucket_ledger.pieces import SUFFIX, Piece, Stream, listed, whole_until
from m3po_dagster.method.alignment.turn import key_and_head
from m3po_dagster.storage.s3 import Bucket

FOLDER = ".spill"
"""Inside the copy of the ledger: the lines that may not be in the bucket yet."""
_LOG = logging.getLogger(__name__)


def send_spilled(bucket: Bucket, spills: Path) -> int:
    """Send what ended processes left unsent, and remove their files; returns how many replies that were.

    A writer holds a lock on its file for its life. Raises StoreError and OSError; what is not sent stays.
    """
    files = sorted(spills.glob(f"*/*{SUFFIX}"))
    if not files:
        return 0
    sent = 0
    for path in files:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # A writer makes its file, then locks it, then writes; another process may have sent and removed it.
            status = os.fstat(file.fileno())
            if status.st_size and status.st_nlink:
                sent += _send(bucket, Stream(path.parent.name, path.stem), file.read())
                path.unlink()
    if sent:
        _LOG.warning("sent %d replies to %s that an earlier process of this machine could not send", sent, bucket.url)
    return sent


def _send(bucket: Bucket, stream: Stream, spilled: bytes) -> int:
    while True:
        # Listed now: the process may have ended before it knew of a piece that it wrote.
        start = whole_until(listed(bucket).get(stream, ()))
        body, sent = _whole_lines(spilled[start:])
        if not body or bucket.put_if_absent(Piece.of(stream, start, start + len(body)).key, body):
            return sent


def _whole_lines(spilled: bytes) -> tuple[bytes, int]:
    """Turns from the first byte on, and how many: a kill tears the last line, a power cut may spoil several."""
    lines = []
    for line in spilled.splitlines(keepends=True):
        try:
            key_and_head(line.removesuffix(b"\n"))
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        lines.append(line)
    return b"".join(lines), len(lines)
