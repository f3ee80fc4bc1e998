"""What requests in flight may yet take, of every process at one ledger in a bucket: an object a process.

A process first writes down what it wants and then looks at the others'. Of those that want the last share at once the
last to write sees all others, so a limit is never passed together. Far from a limit nobody waits for anybody. Near it
all might step back for each other, so who was refused once tries again while no other such does.
"""

import hashlib
import json
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from weakref import WeakSet

from m3po_dagster.bucket_ledger.claims import BucketClaims
from m3po_dagster.bucket_ledger.coalesced import Coalesced
from m3po_dagster.bucket_ledger.holder import Holder
from m3po_dagster.method.alignment.reservations import Reservation
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.storage.s3 import Bucket

FOLDER = ".reserved"
"""Inside the ledger: an object a process with requests in flight, by its holder's name."""
_TURN = hashlib.sha256(FOLDER.encode()).hexdigest()
"""The claim of who tries again."""
_SHORTEST_WAIT, _LONGEST_WAIT = 0.1, 1.0


class BucketReservations:
    """The reservations of one ledger. Safe to use from many threads. Everything raises StoreError."""

    def __init__(self, bucket: Bucket, holder: Holder, claims: BucketClaims) -> None:
        self._bucket, self._holder, self._claims = bucket, holder, claims
        self._refused: WeakSet[Reservation] = WeakSet()
        self._changed = threading.Condition()
        self._mine: list[Reservation] = []
        self._published = ""
        self._publish = Coalesced(self._write)
        self._others = Coalesced(self._read)

    def attempt(self, mine: Reservation, objection: Callable[[list[Reservation]], str | None]) -> str | None:
        """Hold `mine` unless `objection` finds, beside what is held already, why not; then that is returned.

        Raises what `objection` raises too; then `mine` is not held.
        """
        with self._claims.held(_TURN) if mine in self._refused else nullcontext():
            found = self._attempt(mine, objection)
        if found is not None:
            self._refused.add(mine)
        return found

    def _attempt(self, mine: Reservation, objection: Callable[[list[Reservation]], str | None]) -> str | None:
        with self._changed:
            before = list(self._mine)
            self._mine.append(mine)
        kept = False
        try:
            self._publish()
            found = objection(before + self._others())
            kept = found is None
        finally:
            if not kept:
                self.give_back(mine)
        return found

    def held(self) -> list[Reservation]:
        """Every live reservation."""
        with self._changed:
            mine = list(self._mine)
        return mine + self._others()

    def give_back(self, reservation: Reservation) -> None:
        """Hold it no longer."""
        with self._changed:
            self._mine.remove(reservation)
            self._changed.notify_all()
        self._publish()

    def wait(self) -> None:
        """Until something may have been given back, here or elsewhere."""
        with self._changed:
            self._changed.wait(random.uniform(_SHORTEST_WAIT, _LONGEST_WAIT))  # noqa: S311 - spreads waiters, keeps no secret

    def _write(self) -> None:
        sums: dict[tuple[str, str], Spend] = {}
        with self._changed:
            for one in self._mine:
                sums[one.study, one.run] = sums.get((one.study, one.run), Spend()) + one.spend
        name = f"{FOLDER}/{self._holder.id()}"
        if sums:
            rows = [{"study": study, "run": run, "spend": asdict(spend)} for (study, run), spend in sums.items()]
            self._bucket.put(name, json.dumps(rows).encode())
        if self._published and (not sums or self._published != name):
            self._bucket.remove(self._published)
        self._published = name if sums else ""

    def _read(self) -> list[Reservation]:
        """What the other processes that are alive hold; what ended ones left is removed."""
        found = []
        for listed in self._bucket.list(f"{FOLDER}/"):
            if listed.key == self._published:
                continue
            if not self._holder.is_alive(listed.key.removeprefix(f"{FOLDER}/")):
                self._bucket.remove(listed.key)
                continue
            rows = self._bucket.get(listed.key)
            for row in json.loads(rows[0]) if rows else ():
                found.append(Reservation(row["study"], row["run"], Spend(**row["spend"])))
        return found
