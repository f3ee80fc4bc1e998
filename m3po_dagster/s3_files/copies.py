"""Copies of objects on this machine's disk: whole or not there, the longest unused removed once there are too many.

    <folder>/objects/<3 digits>/<hash of the URL>-<ETag>-<size><suffix>

Processes share the folder without a lock: a copy gets its name when it is whole, and one that is removed while somebody
reads it stays readable to the end.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from m3po_dagster.storage.errors import StoreError

CACHE_GB = "M3PO_CACHE_GB"
DEFAULT_GB = 50.0
_PARTIAL = ".partial"
_LEFT_ALONE_SECONDS = 3600
"""A partial copy that nobody wrote to for so long is of a process that was killed."""
_IN_USE_SECONDS = 60
_SHARE_KEPT, _SHARE_WRITTEN = 0.9, 0.05
_NO_LETTERS = re.compile(r"[^A-Za-z0-9]")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")


def cache_bytes() -> int:
    """Bytes that all copies may have together: M3PO_CACHE_GB, else 50 GB. Raises StoreError for what is no number."""
    said = os.environ.get(CACHE_GB) or str(DEFAULT_GB)
    try:
        bound = float(said)
    except ValueError:
        bound = 0.0
    if not 0 < bound < float("inf"):
        raise StoreError(f"{CACHE_GB} is {said!r}: give a number of gigabytes above 0, such as {DEFAULT_GB:g}")
    return int(bound * 1e9)


class Copies:
    """The copies below a folder, `limit` bytes together, and never more than half of what the disk could hold of them.

    `bytes_written` counts what this process added.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder / "objects", limit
        self.bytes_written = 0
        self._sweep_at = 1

    def find(self, url: str, etag: str, size: int) -> Path | None:
        """The copy of this version of an object, now the last used; None where there is none."""
        path = self._path(url, etag, size)
        with suppress(FileNotFoundError):
            if path.stat().st_size != size:  # its disk lost power before all of it was written
                path.unlink()
        return path if self.use(path) else None

    def use(self, copy: Path) -> bool:
        """Makes a copy the last used, so that it stays for the minute; False where it is gone."""
        try:
            os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))
        except FileNotFoundError:
            return False
        return True

    def has(self, url: str) -> bool:
        """Whether there is a copy of any version of the object."""
        folder, start = self._place(url)
        try:
            return any(name.startswith(start) for name in os.listdir(folder))
        except FileNotFoundError:
            return False

    @contextmanager
    def new(self, url: str) -> Iterator[Path]:
        """A file to write a copy to; `keep` makes it one, else it goes away.

        Raises StoreError, saying what to do, where it can't be written.
        """
        folder, start = self._place(url)
        with self._explained(url):
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=f"{start}-", suffix=_PARTIAL)
            os.close(handle)
        try:
            with self._explained(url):
                yield Path(name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)

    def keep(self, written: Path, url: str, etag: str, modified_ns: int) -> Path:
        """Makes a written file the copy of this version; its time is the object's own."""
        size = written.stat().st_size
        path = self._path(url, etag, size)
        os.utime(written, ns=(time.time_ns(), modified_ns))
        os.replace(written, path)
        self.bytes_written += size
        if self.bytes_written >= self._sweep_at:
            self._sweep_at = self.bytes_written + int(self._limit * _SHARE_WRITTEN)
            self.sweep()
        return path

    def sweep(self) -> None:
        """Removes the longest unused copies until there is room; nothing while another process does so."""
        with open(self._folder / ".sweep", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            copies, now = [], time.time()
            for folder in os.scandir(self._folder):
                for entry in os.scandir(folder) if folder.is_dir() else ():
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        if not entry.name.endswith(_PARTIAL):
                            copies.append((status.st_atime, status.st_size, entry.path))
                        elif abs(now - status.st_mtime) > _LEFT_ALONE_SECONDS:
                            os.unlink(entry.path)
            held = sum(size for _, size, _ in copies)
            limit = min(self._limit, (held + shutil.disk_usage(self._folder).free) // 2)
            if held <= limit:
                return
            for used, size, path in sorted(copies):
                # Whoever was just given it has yet to open it.
                if held <= limit * _SHARE_KEPT or 0 <= now - used < _IN_USE_SECONDS:
                    return
                with suppress(FileNotFoundError):
                    os.unlink(path)
                held -= size

    def _place(self, url: str) -> tuple[Path, str]:
        digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / digest[:3], digest[3:43]

    def _path(self, url: str, etag: str, size: int) -> Path:
        folder, start = self._place(url)
        suffix = PurePosixPath(url).suffix
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        return folder / f"{start}-{_NO_LETTERS.sub('', etag)[:80]}-{size}{suffix}"

    @contextmanager
    def _explained(self, url: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"can't keep a copy of {url} in {self._folder}: {error.strerror or error}; free some space, give write "
                f"access, or name another folder with M3PO_CACHE"
            ) from error
