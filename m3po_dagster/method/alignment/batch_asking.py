"""One question to the batches: claim what is in none, submit it, wait, and give what became of each request."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from m3po_dagster.method.alignment.batch_collect import collect, kept_replies
from m3po_dagster.method.alignment.batch_lines import (
    CANCELLED,
    EXPIRED,
    NO_LINE,
    TOO_LARGE,
    BatchFailure,
    outcomes,
    write_requests,
)
from m3po_dagster.method.alignment.batch_record import (
    ERRORS,
    KEYS,
    OUTPUT,
    REPLIED,
    REQUESTS,
    Asker,
    BatchRecords,
    HeldRecord,
)
from m3po_dagster.method.alignment.batch_service import (
    QUEUE_FULL,
    BatchRejected,
    BatchService,
    ServedBatch,
    may_pass,
)
from m3po_dagster.method.alignment.batch_settings import BatchSettings
from m3po_dagster.method.endpoint import EndpointError

# Looks at one batch in a row that may fail before the wait is given up; each has the endpoint's own retries.
_LOOKS = 10
# The longest pause between two looks, in poll_seconds, and what a pause grows by while nothing happens.
_SLOWEST, _SLOWER = 10, 1.5

Outcome = tuple[str, bytes | BatchFailure]


@dataclass
class _Watched:
    """A batch that is waited for: held by this process, or by another that is alive (`held` is None)."""

    keys: dict[str, None]
    held: HeldRecord | None
    since: float = field(default_factory=time.monotonic)
    seen: tuple = ()
    done: int = 0
    lost: int = 0


class Asking:
    """The state of one `BatchQueue.ask`: every key is free, in a watched batch, or given."""

    def __init__(
        self,
        service: BatchService,
        records: BatchRecords,
        settings: BatchSettings,
        bodies: Mapping[str, dict],
        asker: Asker,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._service, self._records, self._settings = service, records, settings
        self._bodies, self._asker, self._progress = bodies, asker, progress
        self._free: dict[str, None] = dict.fromkeys(bodies)
        self._watched: dict[str, _Watched] = {}
        self._tries: Counter[str] = Counter()
        self._given = 0
        # Batches that the service's queue has room for, once it has said that it is full.
        self._room: int | None = None
        self._moved = False

    def run(self) -> Iterator[Outcome]:
        """Every key once; what is still watched when this ends is released for others."""
        pause = self._settings.poll_seconds
        try:
            while self._free or self._watched:
                self._moved = False
                while self._may_submit():
                    yield from self._claim()
                for record_id in list(self._watched):
                    yield from self._look(record_id)
                if self._progress is not None:
                    self._progress(self._given + sum(one.done for one in self._watched.values()), len(self._bodies))
                pause = self._settings.poll_seconds if self._moved else pause * _SLOWER
                if self._watched and not self._may_submit():
                    time.sleep(min(pause, _SLOWEST * self._settings.poll_seconds))
        finally:
            for watched in self._watched.values():
                if watched.held is not None:
                    watched.held.release()

    def _may_submit(self) -> bool:
        return bool(self._free) and (self._room is None or len(self._watched) < self._room)

    def _claim(self) -> Iterator[Outcome]:
        """Finds the free keys that are in batches already, and submits one batch of the others."""
        endpoint, kept, new = self._service.endpoint.settings, [], None
        with self._records.claiming():
            for record in self._records.all(endpoint.base_url, endpoint.model):
                if record.id in self._watched:
                    continue
                of = REPLIED if record.step == "collected" else KEYS
                keys = self._take(key for key in self._records.keys(record.id, of) if key in self._free)
                if keys and record.step == "collected":
                    kept.append((record.id, keys))
                elif keys:
                    self._watched[record.id] = _Watched(keys, None)
            if self._may_submit():
                keys = self._take(islice(self._free, self._settings.max_requests))
                new = self._records.new(endpoint.base_url, endpoint.model, self._asker, list(keys))
                self._watched[new.id] = _Watched(keys, new)
        for record_id, keys in kept:
            for key, reply in kept_replies(self._records.folder / record_id, keys):
                yield from self._settle(key, reply)
        if new is not None:
            yield from self._submit(new)

    def _take(self, keys: Iterable[str]) -> dict[str, None]:
        taken = dict.fromkeys(keys)
        for key in taken:
            del self._free[key]
        return taken

    def _hold(self, record_id: str) -> HeldRecord | None:
        """The record of a watched batch where nobody else holds it."""
        watched = self._watched[record_id]
        if watched.held is None and (held := self._records.hold(record_id)) is not None:
            watched.held = held
            # Whoever held it until now may have given back a part of its claim since we looked.
            asked = set(self._records.keys(record_id))
            given_back = [key for key in watched.keys if key not in asked]
            for key in given_back:
                del watched.keys[key]
            self._free.update(dict.fromkeys(given_back))
        return watched.held

    def _put_back(self, record_id: str) -> None:
        self._free.update(self._watched.pop(record_id).keys)

    def _submit(self, held: HeldRecord) -> Iterator[Outcome]:
        watched = self._watched[held.id]
        file = held.folder / REQUESTS
        fitting, too_large = write_requests(file, watched.keys, self._bodies, self._settings.max_bytes)
        for key in too_large:
            del watched.keys[key]
            yield from self._settle(key, BatchFailure(TOO_LARGE))
        if not fitting:
            held.remove()
            self._put_back(held.id)
            return
        if len(fitting) < held.record.count:
            held.narrow(fitting)
            # What was left over is free for anybody, as the next batch.
            written = dict.fromkeys(fitting)
            self._free.update((key, None) for key in watched.keys if key not in written)
            watched.keys = written
        held.save(step="uploaded", file_id=self._service.upload(file, held.record.file_name))
        self._start(held)

    def _start(self, held: HeldRecord) -> None:
        batch = self._service.create(held.id, held.record.file_id, self._settings.completion_window)
        held.save(step="submitted", batch_id=batch.id, status=batch.status)
        (held.folder / REQUESTS).unlink(missing_ok=True)

    def _look(self, record_id: str) -> Iterator[Outcome]:
        """Sees how a batch is, and gives what became of its requests when it has ended."""
        watched, held = self._watched[record_id], self._hold(record_id)
        if held is None:
            # Its holder is alive, or has given the claim up.
            if self._records.read(record_id) is None:
                self._put_back(record_id)
            return
        if not watched.keys:
            held.release()
            del self._watched[record_id]
            return
        if held.record.step in ("claimed", "uploaded"):
            self._take_over(held)
            return
        if held.record.step == "submitted":
            try:
                batch = self._service.retrieve(held.record.batch_id)
                if batch.ended:
                    collect(self._service, held, self._records.keys(record_id), batch)
                watched.lost = 0
            except EndpointError as error:
                watched.lost += 1
                self._endure(error, watched, held)
                return
            self._note(watched, batch)
            if batch.status == "failed":
                self._make_room(record_id, batch)
                return
        if held.record.step == "collected":
            held.release()
            self._moved = True
            yield from self._give(record_id, held.record.status)

    def _take_over(self, held: HeldRecord) -> None:
        """Goes on with what a killed process left before it knew of a batch."""
        watched, record = self._watched[held.id], held.record
        if record.step == "claimed":
            files = self._service.files_named(record.file_name)
        elif (found := self._service.find(record.id)) is not None:
            held.save(step="submitted", batch_id=found.id, status=found.status)
            return
        elif record.holds_just(list(watched.keys)):
            try:
                self._start(held)
                return
            except BatchRejected:
                # Its file may be too old. Submitted anew, what is really wrong is refused again, and said.
                files = [record.file_id]
        else:
            files = [record.file_id]
        for file_id in files:
            self._service.delete_file(file_id)
        held.remove()
        self._put_back(held.id)

    def _note(self, watched: _Watched, batch: ServedBatch) -> None:
        """Sees whether anything happened, and whether the wait is too long."""
        counts = batch.request_counts
        done = counts.completed + counts.failed if counts else 0
        watched.done = min(done, len(watched.keys))
        self._moved |= watched.seen != (batch.status, done)
        watched.seen = (batch.status, done)
        hours = self._settings.max_wait_hours
        if not batch.ended and time.monotonic() - watched.since > 3600 * hours:
            raise self._service.error(
                f"batch {batch.id} is still {batch.status!r} after {hours:g} hours (max_wait_hours); "
                "it goes on there, and the next run collects it"
            )

    def _endure(self, error: EndpointError, watched: _Watched, held: HeldRecord) -> None:
        """Passes over a bad moment; raises what is none."""
        if error.status == 404:
            raise self._service.error(
                f"knows batch {held.record.batch_id}, or its files, no more (HTTP 404); if this is the right key and "
                f"it is gone for good, remove {held.folder}: its {held.record.count} requests are then asked anew"
            ) from None
        if not may_pass(error) or watched.lost >= _LOOKS:
            raise error

    def _make_room(self, record_id: str, batch: ServedBatch) -> None:
        """What a batch failed of as a whole: a full queue is waited for as long as a batch of ours is in it."""
        keys = list(self._watched[record_id].keys)
        self._watched[record_id].held.release()
        self._put_back(record_id)
        if self._watched and any(problem.code == QUEUE_FULL for problem in batch.problems):
            self._room = len(self._watched)
            return
        raise self._service.rejected(
            f"won't run batch {batch.id}: {self._service.why_failed(batch, keys)}. None of it was asked; correct "
            "that, or lower the batch's max_requests where a queue is full"
        )

    def _give(self, record_id: str, status: str) -> Iterator[Outcome]:
        """What became of the watched requests of a batch that has ended."""
        folder = self._records.folder / record_id
        if status == "failed":
            # Another process watched it, and tells its own user why.
            self._put_back(record_id)
            return
        keys = self._watched.pop(record_id).keys
        for key, outcome in outcomes(folder / OUTPUT, folder / ERRORS):
            if key in keys:
                del keys[key]
                yield from self._settle(key, outcome)
        reason = {"expired": EXPIRED, "cancelled": CANCELLED}.get(status, NO_LINE)
        for key in keys:
            yield from self._settle(key, BatchFailure(reason))

    def _settle(self, key: str, outcome: bytes | BatchFailure) -> Iterator[Outcome]:
        """Gives a key, or sets it free for another try."""
        if isinstance(outcome, BatchFailure) and outcome.may_pass and self._tries[key] < self._settings.re_asks:
            self._tries[key] += 1
            self._free[key] = None
            return
        self._given += 1
        yield key, outcome
