"""One writer's file in a ledger: lines are added to its end, whole or not at all, and stay."""

import contextlib
import fcntl
import os
import secrets
import threading
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path

from m3po_dagster.method.alignment.ledger_index import SUFFIX

_SYNC_SECONDS = 1.0


class Writer:
    """Adds lines to a file of its own in `folder`, which it makes with the first line. Safe to use from many threads.

    A killed process loses no added line; a power cut loses those of the last second or so.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._synced = 0.0
        self.path: Path | None = None
        """The file that the last line went to."""

    def add(self, line: bytes) -> None:
        """Add a line, its line break included. Raises OSError when it can't be written: then nothing of it stays."""
        with self._lock:
            descriptor = self._file()
            self._write(descriptor, line)
            due = time.monotonic() - self._synced > _SYNC_SECONDS
            if due:
                self._synced = time.monotonic()
        if due:
            # Outside the lock: a busy disk takes its time, and other replies need not wait for it.
            os.fsync(descriptor)

    def _file(self) -> int:
        # A file that somebody removed takes lines that nobody will ever see.
        if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
            self._abandon()
        if self._descriptor is None:
            self._descriptor = self._begin()
        return self._descriptor

    def _begin(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        began = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"{began}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.path = self._folder / name
        descriptor = os.open(self.path, flags, 0o644)
        # What tells readers that the file may still grow; it goes with the process.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._size = 0
        return descriptor

    def _write(self, descriptor: int, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            # A disk that fills up takes the beginning of a line.
            try:
                os.ftruncate(descriptor, self._size)
            except OSError:
                self._abandon()
            raise
        self._size += len(line)

    def _abandon(self) -> None:
        self._descriptor = None
        with contextlib.suppress(OSError):
            self._close()
