"""A lock in a bucket: an object that one holder keeps fresh, and that goes to another once its holder has died.

No clock of any machine counts, only the service's: a lease is stale when the service wrote it longer ago, by its own
clock, than the lease may be left alone. Every change is a conditional write, so two takers never both win.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime

from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.s3 import Bucket, Seen

SECONDS = 60.0
"""How long a lease outlives the last sign of its holder."""
_LOG = logging.getLogger(__name__)


class Lease:
    """A held lease. A thread keeps it fresh until `release`; a killed process leaves it to grow stale."""

    def __init__(self, bucket: Bucket, key: str, seconds: float = SECONDS) -> None:
        """Take the lease at `key`. Raises Busy, with who holds it, at once when somebody alive does; StoreError."""
        self._bucket, self._key, self._seconds = bucket, key, seconds
        self._nonce, self._beat = secrets.token_hex(8), 0
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._kept = _elapsed()
        self._etag = self._taken()
        self._ended, self._renewing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"lease {key}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the lease went to somebody else, or could not be kept fresh: its holder must write no more."""
        return self._etag is None or _elapsed() - self._kept > self._seconds

    def check(self) -> None:
        """Raises StoreError when the lease is lost.

        One that could only not be renewed in time (the service was away, the process slept) is renewed now: where
        that works, nobody had it in between.
        """
        if self._etag is not None and self.lost:
            self._renew()
        if self._etag is None:
            raise StoreError(
                f"{self._bucket.where(self._key)} was not renewed for {self._seconds:.0f} s and may be another "
                "writer's by now: run again; finished parts are kept"
            )

    def release(self) -> None:
        """Give the lease back; nothing happens when it is lost or given back already."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        if self._etag is not None:
            try:
                self._bucket.remove_if_match(self._key, self._etag)
            except StoreError as error:
                _LOG.warning("%s; it is free in %.0f s", error, self._seconds)

    def _taken(self) -> str:
        if etag := self._bucket.put_if_absent(self._key, self._text()):
            return etag
        found = self._bucket.get(self._key)
        if found is None:  # given back in between
            if etag := self._bucket.put_if_absent(self._key, self._text()):
                return etag
            raise Busy(self._bucket.where(self._key), None, None, None)
        text, seen = found
        holder = _holder(text)
        stale = _stale(holder, seen, self._seconds)
        if stale and (etag := self._bucket.put_if_match(self._key, self._text(), seen.etag)):
            _LOG.warning("took over %s from process %s", self._bucket.where(self._key), holder.get("pid"))
            return etag
        raise Busy(self._bucket.where(self._key), holder.get("pid"), holder.get("host"), holder.get("since"))

    def _text(self) -> bytes:
        """Other bytes at every beat, so that the ETag differs too."""
        self._beat += 1
        fields = {"pid": os.getpid(), "host": socket.gethostname(), "since": self._since, "nonce": self._nonce}
        return json.dumps({**fields, "seconds": self._seconds, "beat": self._beat}).encode()

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            try:
                self._renew()
            except StoreError as error:
                _LOG.warning("%s", error)  # the service may come back in time
            if self._etag is None:
                return

    def _renew(self) -> None:
        with self._renewing:
            asked = _elapsed()
            if self._etag is not None:
                self._etag = self._bucket.put_if_match(self._key, self._text(), self._etag)
                self._kept = asked


def held(bucket: Bucket, key: str, seconds: float = SECONDS) -> bool:
    """Whether somebody alive holds the lease at `key`; nothing is written. Raises StoreError."""
    found = bucket.get(key)
    return found is not None and not _stale(_holder(found[0]), found[1], seconds)


def _stale(holder: dict, seen: Seen, seconds: float) -> bool:
    """Whether a lease was left alone for longer than it may be: than its holder wrote, or else `seconds`."""
    return seen.age > float(holder.get("seconds", seconds))


def _elapsed() -> float:
    """Seconds that no setting of the clock changes and that go on while the machine sleeps, where it can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _holder(text: bytes) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
