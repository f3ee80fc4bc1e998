"""Who is at work on a key, among all machines: an object a claim, written on condition that there is none.

A claim names its holder and is as good as the holder's sign of life: one whose holder is gone goes to the next who
wants it. Threads and processes of one machine are kept apart by local locks first, so that only one of them asks.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from m3po_dagster.bucket_ledger.holder import Holder
from m3po_dagster.method.alignment.claims import Claims
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Bucket

FOLDER = ".claims"
"""Inside the ledger: an object a key that somebody asks right now."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_LOG = logging.getLogger(__name__)


class BucketClaims:
    """The claims of one ledger. Safe to use from many threads."""

    def __init__(self, bucket: Bucket, holder: Holder, local: Claims) -> None:
        self._bucket, self._holder, self._local = bucket, holder, local
        self._lock = threading.Lock()
        self._left: list[tuple[str, str]] = []

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Hold a key against all other threads, processes and machines, waiting for it first.

        Raises StoreError, OSError for the local lock, RuntimeError when this thread holds the key already.
        """
        with self._local.held(key):
            name = f"{FOLDER}/{key}"
            etag = self._taken(name)
            try:
                yield
            finally:
                self._give_back(name, etag)

    def _taken(self, name: str) -> str:
        pause = _FIRST_PAUSE
        while True:
            me = self._holder.id()
            # Other bytes for every claim, so that none is ever freed in place of a later one.
            body = f"{me} {secrets.token_hex(8)}".encode()
            etag = self._bucket.put_if_absent(name, body) or self._taken_over(name, body, me)
            if etag is None:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            elif self._holder.id() == me:
                return etag
            else:  # suspended meanwhile for so long that others took it for dead
                self._give_back(name, etag)

    def _taken_over(self, name: str, body: bytes, me: str) -> str | None:
        """The ETag of a claim taken from a holder that is gone; None where it is alive, or somebody was faster.

        One that names this process is one it could not give back: nobody here holds the key.
        """
        found = self._bucket.get(name)
        if found is None:
            return None
        who = holder_of(found[0])
        if who != me and self._holder.is_alive(who):
            return None
        etag = self._bucket.put_if_match(name, body, found[1].etag)
        if etag and who != me:
            _LOG.warning("took over %s from %s, which is gone or gives no sign of life", self._bucket.where(name), who)
        return etag

    def _give_back(self, name: str, etag: str) -> None:
        """Free a claim, and those that could not be freed before. What was asked is kept: a failure raises nothing."""
        with self._lock:
            due, self._left = [*self._left, (name, etag)], []
        try:
            while due:
                self._bucket.remove_if_match(*due[-1])
                due.pop()
        except StoreError as error:
            _LOG.warning("%s; it is tried again with the next reply, and free when this process ends", error)
            with self._lock:
                self._left += due


def holder_of(claim: bytes) -> str:
    """Whose a claim is."""
    return claim.decode(errors="replace").partition(" ")[0]
