"""This process as others at the same ledger see it: an object kept fresh for as long as it lives."""

import logging
import secrets
import socket
import threading
import time

from m3po_dagster.storage.lease import Lease
from m3po_dagster.storage.s3 import Bucket

FOLDER = ".holders"
"""Inside the ledger: an object a process at work on it."""
_LOOK_AGAIN_SECONDS = 0.5
_LOG = logging.getLogger(__name__)


class Holder:
    """Who holds claims and reservations. Safe to use from many threads."""

    def __init__(self, bucket: Bucket, seconds: float) -> None:
        """`seconds`: how long a process that gives no sign still counts as alive. Nothing is asked yet."""
        self._bucket, self.seconds = bucket, seconds
        self._lock = threading.Lock()
        self._id = ""
        self._lease: Lease | None = None

    def id(self) -> str:
        """The name under which this process is alive now; another one when it could not keep its last alive.

        Raises StoreError.
        """
        with self._lock:
            if self._lease is not None and self._lease.lost:
                _LOG.warning("%s gave no sign of life for %.0f s: others may ask what it asks", self._id, self.seconds)
            if self._lease is None or self._lease.lost:
                self._drop()
                name = f"{socket.gethostname()}-{secrets.token_hex(8)}"
                self._lease, self._id = Lease(self._bucket, f"{FOLDER}/{name}", self.seconds), name
            return self._id

    def is_alive(self, other: str) -> bool:
        """Whether the process of that name gave a sign of life lately, by the service's clock. Raises StoreError."""
        seen = self._bucket.look(f"{FOLDER}/{other}")
        if seen is None:
            # Services that only resemble Amazon's may answer so while they replace an object.
            time.sleep(_LOOK_AGAIN_SECONDS)
            seen = self._bucket.look(f"{FOLDER}/{other}")
        return seen is not None and seen.age <= self.seconds

    def close(self) -> None:
        """Let go of everything at once, where the service answers; else it grows stale. Raises StoreError."""
        # Asked first: to end the lease waits for a renewal that may be under way.
        if self._lease is not None and self.is_alive(self._id):
            with self._lock:
                self._drop()

    def _drop(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None
