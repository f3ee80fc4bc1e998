"""Where results and the event log go: room, rights, locks that hold, a clock that agrees."""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from m3po_dagster.doctor.findings import Finding, note, ok, problem
from m3po_dagster.storage.cache_folder import caches
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.filesystem import LocalFolder
from m3po_dagster.storage.s3 import Bucket, is_s3

GIB = 2**30
LEAST_FREE, LOW_FREE = 0.5 * GIB, 5 * GIB
MOST_SECONDS_APART = 5.0
_PATIENCE = 10.0
_NEVER_WRITTEN = '"0123456789abcdef0123456789abcdef"'


def check_places(store: str, home: Path) -> Iterator[Finding]:
    """The store's folder or bucket, this machine's copies of what lies in buckets, and DAGSTER_HOME."""
    places = {}
    if is_s3(store):
        yield check_bucket(store)
        places["copies"] = caches()
    else:
        try:
            places["store"] = LocalFolder(store).root
        except StoreError as error:
            yield problem("store", str(error), "Correct M3PO_STORE")
    for name, folder in (places | {"DAGSTER_HOME": home}).items():
        there = _nearest(folder)
        yield _room(name, folder, there)
        yield from _rights(name, there)


def check_bucket(url: str) -> Finding:
    """Writes, reads and removes an object, and sees that the service keeps the conditions that commits rest on."""
    probe = f".m3po-doctor-{secrets.token_hex(8)}"
    try:
        bucket = Bucket(url, patience=_PATIENCE)
        etag = bucket.put_if_absent(probe, b"1")
        try:
            broken = _broken_condition(bucket, probe, etag)
        finally:
            bucket.remove(probe)
        there = next(bucket.list(probe), None)
    except StoreError as error:
        return problem("store", str(error), "Mend the credentials, the bucket or its service")
    if there is not None:
        return problem("store", f"{bucket.where(probe)} was removed and is still there", "Use another service")
    if broken is not None:
        what = f"{url} does not keep conditional writes ({broken}): two runs could commit one result"
        return problem("store", what, "Use a service that keeps If-None-Match and If-Match")
    return ok("store", f"{bucket.url}: read, written, removed; conditional writes are kept")


def _broken_condition(bucket: Bucket, probe: str, etag: str | None) -> str | None:
    """The condition that the service gets wrong, by an object that was just written if it was absent."""

    def holds(body: bytes | None) -> bool:
        found = bucket.get(probe)
        return (None if found is None else found[0]) == body

    if etag is None or bucket.put_if_absent(probe, b"2") is not None or not holds(b"1"):
        return "If-None-Match on PUT"
    if bucket.put_if_match(probe, b"3", _NEVER_WRITTEN) is not None or not holds(b"1"):
        return "If-Match on PUT"
    if bucket.remove_if_match(probe, _NEVER_WRITTEN) or not holds(b"1"):
        return "If-Match on DELETE"
    later = bucket.put_if_match(probe, b"4", etag)
    if later is None or not holds(b"4"):
        return "If-Match on PUT"
    if not bucket.remove_if_match(probe, later) or not holds(None):
        return "If-Match on DELETE"
    return None


def check_event_log() -> Finding:
    """Whether Dagster's event log answers."""
    from m3po_dagster.cli.event_log import EventLogError, opened_event_log

    try:
        with opened_event_log() as instance:
            return ok("event log", f"{type(instance.event_log_storage).__name__} answers")
    except EventLogError as error:
        return problem("event log", str(error), "Mend dagster.yaml or start its database")


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there: what will be made is made in it."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))  # no error where it may not be seen


def _room(name: str, folder: Path, there: Path) -> Finding:
    usage = shutil.disk_usage(there)
    what = f"{folder}: {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < LEAST_FREE:
        return problem(name, what, "Free some space, or choose another place")
    if usage.free < LOW_FREE:
        return note(name, what, "A training's checkpoints or a 7B model merged with an adapter need more")
    return ok(name, what)


def _rights(name: str, there: Path) -> Iterator[Finding]:
    """Writes a file, locks it twice, and compares its time with this machine's."""
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".m3po-doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            apart = os.fstat(file.fileno()).st_mtime - time.time()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(file.name, "rb") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = False
                except BlockingIOError:
                    held = True
    except OSError as error:
        yield problem(name, f"{there} can't be written or locked: {error.strerror}", "Give this user write access")
        return
    if not held:
        yield problem(name, f"locks don't hold in {there}: two runs would write one result", "Use a local disk")
    if abs(apart) > MOST_SECONDS_APART:
        what = f"the clock of {there} is {apart:+.0f} s from this machine's"
        yield note(name, what, "Set both by NTP: ages of drafts and caches are told wrongly")
