"""The ledger in a bucket: several machines share it, and none pays for what another has asked.

    s3://bucket/prefix/ledger/<model>/<stream>.<start>-<end>.jsonl   the replies
                              .claims/<key>                          who asks what right now
                              .holders/<holder>                      which processes are alive
                              .reserved/<holder>                     what their requests in flight may yet take

A process works on a local copy of it, laid out as a ledger in a folder, in which it fetches only what is new.
"""

import atexit
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from m3po_dagster.bucket_ledger.claims import BucketClaims
from m3po_dagster.bucket_ledger.coalesced import Coalesced
from m3po_dagster.bucket_ledger.holder import Holder
from m3po_dagster.bucket_ledger.mirror import Mirror
from m3po_dagster.bucket_ledger.reservations import BucketReservations
from m3po_dagster.bucket_ledger.spills import FOLDER as SPILLS
from m3po_dagster.bucket_ledger.spills import send_spilled
from m3po_dagster.bucket_ledger.tidy import Tidied, tidied
from m3po_dagster.bucket_ledger.writer import BucketWriter
from m3po_dagster.method.alignment.claims import claims_on
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.ledger_errors import LedgerError, explained
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.lease import SECONDS
from m3po_dagster.storage.s3 import Bucket

_CLAIMS = ".claims"
_PATIENCE_SECONDS = 300.0
_PATIENCE_AT_EXIT = 5.0
_STALE_SECONDS = 1.0


class BucketLedger(Ledger):
    """The replies in a bucket. Safe to use from many threads, and with other processes and machines."""

    mirrored = True

    def __init__(
        self, url: str, copy: Path, patience: float = _PATIENCE_SECONDS, lease_seconds: float = SECONDS
    ) -> None:
        """`url` is the ledger's own; `copy` the folder of its local copy, on a disk of this machine.

        `patience`: seconds for which a request is repeated while the service can't be reached. `lease_seconds`: how
        long a process that gives no sign still holds what it asks. Nothing is asked of the service yet. Raises
        StoreError for a URL that names no bucket.
        """
        self._url, self._patience, self._lease_seconds = Bucket(url).url, patience, lease_seconds
        super().__init__(copy)
        atexit.register(self.close)

    def _begin(self) -> None:
        super()._begin()
        bucket = Bucket(self._url, self._patience)
        self._bucket = bucket
        self._mirror = Mirror(bucket, self.folder)
        self._holder = Holder(bucket, self._lease_seconds)
        self._claims = BucketClaims(bucket, self._holder, claims_on(self.folder / _CLAIMS))
        self._reservations = BucketReservations(bucket, self._holder, self._claims)
        self._look = Coalesced(self._send_and_fetch)
        self._looked: float | None = None

    @property
    def location(self) -> str:
        """The ledger's URL."""
        return self._url

    def close(self) -> None:
        """Leave small objects merged and claims free, as far as the service answers; the ledger stays usable."""
        atexit.unregister(self.close)
        self._bucket.patience = min(self._patience, _PATIENCE_AT_EXIT)
        try:
            self._holder.close()
            for writer in list(self._writers.values()):
                writer.close()
        except (StoreError, OSError):
            return  # nothing is lost: what is not sent lies in spill files, what is held grows stale
        finally:
            self._bucket.patience = self._patience

    def reservations(self) -> BucketReservations:
        """What requests in flight may yet take, of every process at work on this ledger."""
        return self._reservations

    def compact(self) -> Tidied:
        """Merge what every stream lies in into one object, and remove what ended processes left. Raises LedgerError."""
        with self.explained("clear up"):
            self._catch_up(fresh=True)
            return tidied(self._bucket, self._mirror, self._holder)

    def _held(self, key: str) -> AbstractContextManager[None]:
        return self._claims.held(key)

    def _writer(self, name: str) -> BucketWriter:
        return BucketWriter(self._bucket, self._mirror, self.folder / SPILLS, name)

    def _catch_up(self, fresh: bool) -> None:
        if fresh or self._looked is None or time.monotonic() - self._looked > _STALE_SECONDS:
            self._look()

    def _send_and_fetch(self) -> None:
        began = time.monotonic()
        if self._looked is None:
            send_spilled(self._bucket, self.folder / SPILLS)
        self._mirror.catch_up()
        self._looked = began

    @contextmanager
    def explained(self, action: str, name: str = "") -> Iterator[None]:
        """Turns what can go wrong with the ledger in the block into a LedgerError that says what to do."""
        with explained(action, self.folder / name):
            try:
                yield
            except StoreError as error:
                raise LedgerError(f"can't {action} {self._url}: {error}") from error
