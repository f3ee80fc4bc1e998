"""A store's root in a bucket: what `filesystem.LocalFolder` is for a folder of this machine, with the same methods.

An object is there as a whole or not at all, so a write needs no second name. Nobody keeps two writers apart but a
lease, which can run out while its holder sleeps: so every attempt at an artifact writes under a name of its own, and
of all attempts the one whose manifest comes first counts, by a conditional write.
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from errno import ENOENT
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeAlias

import pyarrow as pa
from pyarrow.fs import FileInfo, FileType

from m3po_dagster.storage import lease
from m3po_dagster.storage.cache_folder import cache_folder
from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.filesystem import LOCK, SCRATCH, Answer, Item, LocalFolder, Lock
from m3po_dagster.storage.names import parse_folder
from m3po_dagster.storage.range_reader import read_columns
from m3po_dagster.storage.s3 import Bucket, Listed
from m3po_dagster.storage.scratch import kept_scratch
from m3po_dagster.storage.staging import Staging

LEASE_SECONDS = lease.SECONDS
_AT_ONCE = 16
_CHUNK = 8 << 20
_FEW = 8
"""Up to so many files are looked at one by one; beyond it a listing takes fewer requests."""
_LOOKED_AT = 1000
"""Objects of a folder that must all be none of the store's for it to be none of its assets: one listing's page."""
_HALF_A_COPY = re.compile(r"\..+\.[0-9a-fA-F]{8}")
"""The name of a copy that is still being made, or that a killed process left."""
_NOBODYS_SECONDS = 3600
"""A copy that nothing was added to for so long is made by nobody any more."""
_LOG = logging.getLogger(__name__)


class BucketLock:
    """A held lease on one folder of the store, and this attempt's place, in the bucket and on this machine."""

    def __init__(self, bucket: Bucket, folder: str, drafts: Path) -> None:
        self.attempt = f"attempt-{secrets.token_hex(8)}"
        self._lease = lease.Lease(bucket, f"{folder}/{LOCK}", LEASE_SECONDS)
        try:
            self._staging = Staging(drafts, f"{folder}/{self.attempt}")
        except BaseException:
            self._lease.release()
            raise

    def check(self) -> None:
        """Raises StoreError when somebody else may hold the lock by now."""
        self._lease.check()

    def release(self) -> None:
        """Give the lock back, and the room that the attempt took on this machine."""
        try:
            self._staging.remove()
        except OSError as error:
            _LOG.warning("the room of %s on this machine is not given back: %s", self.attempt, error)
        finally:
            self._lease.release()


class BucketFolder:
    """A store's root as `s3://bucket/prefix`; every path is relative to it, with forward slashes."""

    look_lasts = 60.0
    """Seconds for which what was seen here may be taken to be here still, by who looks often."""

    keeps_whole = True
    """Whether a file that was once written can't come to be cut short."""

    def __init__(self, url: str) -> None:
        """Nothing is asked of the service yet. Raises StoreError for a URL that names no bucket."""
        self._bucket = Bucket(url)
        self.cache_folder = cache_folder(self._bucket.url)
        self._copies, self._drafts = self.cache_folder / "artifacts", self.cache_folder / "drafts"

    @property
    def location(self) -> str:
        """The URL."""
        return self._bucket.url

    def exists(self) -> bool:
        """Whether there is any object."""
        return next(self._bucket.list(), None) is not None

    def local(self, path: str) -> Path:
        """Where a copy of the path lies on this machine once `provide` has brought it."""
        return self._copies / path

    def where(self, path: str) -> str:
        """The path as messages name it."""
        return self._bucket.where(path)

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
        """What `function` gives for each item, in their order, several at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(function, items))

    def artifacts(self, asset: str | None = None) -> Iterator[tuple[str, str, str]]:
        """Asset, partition and fingerprint of every folder at that depth: a request for each 1000 objects below."""
        for name in self._bucket.folders() if asset is None else [asset]:
            objects = self._bucket.list(f"{name}/")
            first = [_artifact_of(found) for found in islice(objects, _LOOKED_AT)]
            if not any(names and parse_folder(*names) for names in first):
                continue  # something else that lies beside the artifacts, however much of it there is
            yield from dict.fromkeys(filter(None, [*first, *map(_artifact_of, objects)]))

    def present(self, paths: Iterable[str]) -> set[str]:
        """Those of these files that are there, whether by looking at each or by listing where they lie."""
        wanted = set(paths)
        if len(wanted) <= _FEW:
            sizes = self.map(self.size, wanted)
            return {path for path, size in zip(wanted, sizes, strict=True) if size is not None}
        prefixes = {f"{path.split('/')[0]}/" for path in wanted}
        return {
            found.key for keys in self.map(lambda at: list(self._bucket.list(at)), prefixes) for found in keys
        } & wanted

    def files(self, path: str) -> dict[str, FileInfo]:
        """Every file below a folder, by its path relative to that folder; {} when there is none."""
        return {
            found.key.removeprefix(f"{path}/"): FileInfo(
                found.key, FileType.File, size=found.size, mtime_ns=int(found.modified.timestamp() * 1e9)
            )
            for found in self._bucket.list(f"{path}/")
        }

    def size(self, path: str) -> int | None:
        """Bytes of a file, None when it is not there."""
        seen = self._bucket.look(path)
        return None if seen is None else seen.size

    def read(self, path: str) -> bytes | None:
        """A whole file; None when it is not there."""
        found = self._bucket.get(path)
        return None if found is None else found[0]

    def columns(self, path: str, size: int, names: Sequence[str]) -> pa.Table:
        """Columns of a Parquet file of `size` bytes. Raises as `read_columns`."""
        return read_columns(self._bucket, path, size, names)

    def sha256(self, path: str, size: int) -> str:
        """sha256 (hex) of a file of `size` bytes, of the object itself. Raises FileNotFoundError, StoreError."""
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK):
            chunk = self._bucket.get_range(path, start, min(_CHUNK, size - start))
            if chunk is None:
                raise FileNotFoundError(f"{self.where(path)} is not there with its {size} bytes")
            digest.update(chunk)
        return digest.hexdigest()

    def provide(self, path: str, size: int, whole: Callable[[Path], bool], always_check: bool) -> bool:
        """See to it that `local(path)` has the file: copied, found `whole`, and only then under its name.

        Gives whether it is whole. A copy made before is used again if it has the size, and with `always_check` if it
        is still whole. Raises StoreError when it can't be had.
        """
        target = self.local(path)
        if target.is_file() and target.stat().st_size == size and (not always_check or whole(target)):
            return True
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        with explained("copy a file of the bucket to", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if self._bucket.fetch(path, unfinished) is None:
                    raise FileNotFoundError(ENOENT, "it is not there", self.where(path))
                if not whole(unfinished):
                    return False
                os.replace(unfinished, target)
                return True
            finally:
                unfinished.unlink(missing_ok=True)

    def write(self, path: str, fill: Callable[[BinaryIO], object]) -> int:
        """Write a file all at once: `fill` writes it, then it is in the bucket, or it is not there.

        Returns its size in bytes. Raises StoreError when it can't be written.
        """
        staged = self._drafts / path
        with explained("write", staged):
            staged.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(staged, "wb") as file:
                    fill(file)
                    size = file.tell()
                self._bucket.upload(staged, path)
            finally:
                staged.unlink(missing_ok=True)
        return size

    def write_once(self, path: str, text: bytes) -> bool:
        """Write a file unless somebody else did; whether it is this one."""
        return self._bucket.put_if_absent(path, text) is not None

    def make_empty(self, path: str) -> Path:
        """An empty folder on this machine whose files `take_in` brings to `path`."""
        staged = self._drafts / path
        with explained("make the folder", staged):
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
        return staged

    def take_in(self, path: str) -> None:
        """Bring a file that somebody else wrote into a folder of `make_empty` into the bucket."""
        with explained("read", self._drafts / path):
            self._bucket.upload(self._drafts / path, path)

    def scratch(self, folder: str, lock: BucketLock, whole: str) -> AbstractContextManager[Path]:
        """A folder on this machine that one attempt at an artifact leaves to the next, on whatever machine that is."""
        local = self._drafts / folder / lock.attempt / SCRATCH
        return kept_scratch(self._bucket, folder, lock.attempt, local, whole, lock.check)

    def children(self, path: str) -> list[str]:
        """Names inside a folder, sorted; [] when there is no such folder."""
        return sorted({name.split("/")[0] for name in self.files(path)})

    def move(self, path: str, to: str) -> None:
        """Move a file, or a folder with all it holds, to a name that is not taken. Raises StoreError.

        Each object is copied inside the service, and they are removed when all are there.
        """
        names = [path, *(f"{path}/{name}" for name in self.files(path))]
        moved = [name for name in names if self._bucket.copy(name, to + name.removeprefix(path))]
        if not moved:
            raise StoreError(f"can't move {self.where(path)}: it is not there; run again")
        self._bucket.remove_all(moved)

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        self._bucket.remove(path)

    def clear(self, folder: str, keep: Collection[str], seen: Collection[str]) -> None:
        """Remove the files `seen` in a folder but those to `keep`, by their paths relative to it, and copies of them.

        What came there since stays: it may be another writer's, should the lock have been lost in this moment.
        """
        names = [name for name in seen if name not in keep]
        self._bucket.remove_all(f"{folder}/{name}" for name in names)
        for name in names:
            self.local(f"{folder}/{name}").unlink(missing_ok=True)
        _sweep(self.local(folder))

    def remove_empty(self, path: str) -> None:
        """Remove the folders of copies that are left empty, on this machine: a bucket has no folders."""
        folder = self.local(path)
        _sweep(folder)
        with suppress(OSError):
            for below, _, _ in os.walk(folder, topdown=False):
                os.rmdir(below)
            while (folder := folder.parent) != self._copies:
                folder.rmdir()

    def lock(self, folder: str) -> BucketLock:
        """Lock a folder. Raises Busy, with who holds it, at once when somebody else does."""
        return BucketLock(self._bucket, folder, self._drafts)

    def busy(self, folder: str) -> bool:
        """Whether somebody alive holds the lock on a folder; nothing is written."""
        return lease.held(self._bucket, f"{folder}/{LOCK}", LEASE_SECONDS)


Disk: TypeAlias = LocalFolder | BucketFolder
DiskLock: TypeAlias = Lock | BucketLock


def _sweep(copies: Path) -> None:
    """Remove what processes that were killed while they copied a file left below a folder."""
    for path in copies.rglob(".*"):
        with suppress(OSError):  # another process was faster
            old = time.time() - path.lstat().st_mtime > _NOBODYS_SECONDS
            if old and _HALF_A_COPY.fullmatch(path.name) and path.is_file():
                path.unlink()


def _artifact_of(found: Listed) -> tuple[str, str, str] | None:
    names = found.key.split("/", 3)
    return (names[0], names[1], names[2]) if len(names) == 4 else None
