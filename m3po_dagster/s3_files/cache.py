"""Objects looked at and copied to this machine for whoever reads them, each asked for as rarely as is sound.

What was seen of an object counts for a minute; after that it is looked at again, so that one that changed is read anew.
"""

import errno
import hashlib
import os
import re
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.s3_files.copies import Copies, cache_bytes
from m3po_dagster.storage.cache_folder import caches
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import SCHEME, Bucket, Seen

if TYPE_CHECKING:
    from m3po_dagster.s3_files.ahead import Plan
    from m3po_dagster.s3_files.path import S3Path

FRESH_SECONDS = 60.0
_LOOKS_HELD = 50_000
_MOST_SURVEYED = 200_000
"""Objects below a folder that are remembered at once; of a larger one each is looked at when it is asked for."""
_KEY_BYTES = 1024
_TURNS, _READINGS = 1024, 3
_MD5 = re.compile(r'"([0-9a-f]{32})"')


class ObjectCache:
    """What this process knows of objects, and the copies that it shares with others. Used from many threads."""

    def __init__(self, folder: Path, limit: int, fresh_seconds: float = FRESH_SECONDS) -> None:
        self.copies = Copies(folder, limit)
        self._fresh_seconds = fresh_seconds
        self._buckets: dict[str, Bucket] = {}
        self._looks: OrderedDict[S3Path, tuple[float, Seen]] = OrderedDict()
        self._surveys: dict[S3Path, tuple[float, _Survey | None]] = {}
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(_TURNS)]
        self.plans: list[Plan] = []

    def bucket(self, name: str) -> Bucket:
        """The bucket; keys are whole."""
        with self._lock:
            return self._buckets.setdefault(name, Bucket(f"{SCHEME}://{name}"))

    def look(self, path: "S3Path") -> Seen | None:
        """An object as it was within the last minute; None where there is none. Raises StoreError."""
        known, seen = self._known(path)
        if known:
            return seen
        if not _may_be(path):
            return None
        seen = self.bucket(path.bucket).look(path.key)
        # What is missing may be written at any moment.
        if seen is not None:
            self._note(path, seen)
        return seen

    def copy(self, path: "S3Path") -> Path:
        """The object's copy on this machine. Raises FileNotFoundError where there is none; StoreError."""
        for plan in tuple(self.plans):
            plan.reached(path)
            # What was fetched ahead is what is wanted, however long ago that was.
            if (fetched := plan.fetched.get(path)) is not None:
                if self.copies.use(fetched[0]):
                    return fetched[0]
                plan.fetched.pop(path, None)
        return self.fetch(path)[0]

    def fetch(self, path: "S3Path") -> tuple[Path, Seen]:
        """As `copy`, for who fetches ahead: the copy, and what was seen of the object when it was made."""
        # A second reader waits for the first one's copy.
        with self._turns[hash(path) % _TURNS]:
            known, seen = self._known(path)
            if not known and self.copies.has(str(path)):
                known, seen = True, self.look(path)
            if (known and seen is None) or not _may_be(path):
                raise _missing(path)
            there = self.copies.find(str(path), seen.etag, seen.size) if seen else None
            return (there, seen) if there else self._download(path)

    def survey(self, folder: "S3Path") -> None:
        """Remembers every object below a folder, and that there is no other. Raises StoreError."""
        with self._lock:
            now = time.monotonic()
            self._surveys = {key: one for key, one in self._surveys.items() if now - one[0] <= self._fresh_seconds}
            if folder in self._surveys:
                return
        asked, found = time.monotonic(), {}
        prefix = f"{folder.key}/" if folder.key else ""
        now = datetime.now(UTC)
        for one in self.bucket(folder.bucket).list(prefix):
            found[one.key] = Seen(one.size, one.etag, one.modified, now)
            if len(found) > _MOST_SURVEYED:
                found = None
                break
        with self._lock:
            self._surveys[folder] = asked, None if found is None else _Survey(found)

    def is_folder(self, path: "S3Path") -> bool:
        """Whether any object lies below, as it was within the last minute. Raises StoreError."""
        prefix = f"{path.key}/" if path.key else ""
        with self._lock:
            survey = self._surveyed(path)
        return self.bucket(path.bucket).holds(prefix) if survey is None else survey.holds(prefix)

    def write_once(self, path: "S3Path", content: bytes) -> None:
        """Writes the object unless there is one; what was written is the copy of it. Raises StoreError."""
        if self.look(path) is not None:
            return
        etag = self.bucket(path.bucket).put_if_absent(path.key, content)
        if etag is None:
            return  # somebody else's
        now = datetime.now(UTC)
        with self.copies.new(str(path)) as file:
            file.write_bytes(content)
            self.copies.keep(file, str(path), etag, _ns(now))
        self._note(path, Seen(len(content), etag, now, now))

    def _known(self, path: "S3Path") -> tuple[bool, Seen | None]:
        """Whether it is known how the object looks, and how: as the copy that `copy` gives, where there is one."""
        for plan in tuple(self.plans):
            if (fetched := plan.fetched.get(path)) is not None:
                return True, fetched[1]
        now = time.monotonic()
        with self._lock:
            at, seen = self._looks.get(path, (None, None))
            if at is not None and now - at <= self._fresh_seconds:
                return True, seen
            survey = self._surveyed(path)
        return survey is not None, survey.objects.get(path.key) if survey else None

    def _surveyed(self, path: "S3Path") -> "_Survey | None":
        """The survey that tells of the path, if there is one that still counts."""
        now = time.monotonic()
        for folder, (at, survey) in self._surveys.items():
            if survey is not None and now - at <= self._fresh_seconds and path.is_relative_to(folder):
                return survey
        return None

    def _note(self, path: "S3Path", seen: Seen) -> None:
        with self._lock:
            self._looks[path] = time.monotonic(), seen
            self._looks.move_to_end(path)
            if len(self._looks) > _LOOKS_HELD:
                self._looks.popitem(last=False)

    def _download(self, path: "S3Path") -> tuple[Path, Seen]:
        url, bucket, before = str(path), self.bucket(path.bucket), None
        for _ in range(_READINGS):
            with self.copies.new(url) as file:
                seen = bucket.fetch(path.key, file)
                wrong = None if seen is None else _wrong(file, seen)
                # Some services have other ETags than hashes: then a second reading gives the same bytes.
                if seen is not None and wrong in (None, before):
                    kept = self.copies.keep(file, url, seen.etag, _ns(seen.modified))
                    self._note(path, seen)
                    return kept, seen
            if seen is None:
                raise _missing(path)
            before = wrong
        raise StoreError(
            f"{url}: {_READINGS} readings gave other bytes each time: check the service and this machine's disk"
        )


class _Survey:
    """Every object below a folder, by its key."""

    def __init__(self, objects: dict[str, Seen]) -> None:
        self.objects, self._keys = objects, sorted(objects)

    def holds(self, prefix: str) -> bool:
        place = bisect_left(self._keys, prefix)
        return place < len(self._keys) and self._keys[place].startswith(prefix)


def _wrong(file: Path, seen: Seen) -> str | None:
    """What a file holds that isn't the object, as a hash; None where size and ETag agree."""
    md5 = _MD5.fullmatch(seen.etag)
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() if md5 else ""
    if file.stat().st_size != seen.size:
        return f"{file.stat().st_size} bytes {found}"
    return None if md5 is None or md5[1] == found else found


def _may_be(path: "S3Path") -> bool:
    """Whether an object can have such a key: any name may stand in a dataset."""
    try:
        return 0 < len(path.key.encode("utf-8")) <= _KEY_BYTES
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _missing(path: "S3Path") -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such object", str(path))


def _ns(time: datetime) -> int:
    return int(time.timestamp() * 1e9)


def object_cache() -> ObjectCache:
    """This process's cache, in the folder and of the size that the environment names. Raises StoreError."""
    return _cache_of(os.getpid(), caches(), cache_bytes())


@lru_cache(maxsize=4)
def _cache_of(pid: int, folder: Path, limit: int) -> ObjectCache:
    """A forked child has its own: a lock that another thread held would never be given back there."""
    return ObjectCache(folder, limit)
