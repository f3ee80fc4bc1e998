"""What a store asks of the disk below it: listing and reading through pyarrow, durable writes and locks of its own.

Everything that only a local folder can do (rename, fsync, flock, local paths) is in this class and nowhere else, so
that another kind of storage is another class with these methods.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs as arrow_fs

from m3po_dagster.storage.errors import Busy, StoreError, explained

LOCK = "lock"
_UNFINISHED = ".tmp"
_LOCK_ATTEMPTS = 100


class Lock:
    """An exclusive lock on one folder of the store; the kernel drops it when its process dies, however it dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Give the lock back; its file goes first, so that a waiting writer never locks a file nobody will see."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class LocalFolder:
    """A store's root as a folder of this machine; every path is relative to it, with forward slashes."""

    def __init__(self, root: str | Path) -> None:
        """`root` is a path or a file:// URL. Raises StoreError for other kinds of storage."""
        if "://" in str(root):
            try:
                filesystem, path = arrow_fs.FileSystem.from_uri(str(root))
            except (pa.ArrowInvalid, OSError) as error:
                raise StoreError(f"{root} is not a URL of a store: {error}; give a local folder") from error
            if not isinstance(filesystem, arrow_fs.LocalFileSystem):
                raise StoreError(
                    f"{root}: a store is a local folder, storage of type {filesystem.type_name} is not served"
                )
        else:
            path = str(root)
        self.root = Path(path).expanduser().absolute()
        self.filesystem = arrow_fs.SubTreeFileSystem(str(self.root), arrow_fs.LocalFileSystem())

    def local(self, path: str) -> Path:
        """The path on this machine."""
        return self.root / path

    def children(self, path: str, folders_only: bool = False) -> list[str]:
        """Names inside a folder, sorted, hidden ones left out; [] when there is no such folder."""
        selector = arrow_fs.FileSelector(path, allow_not_found=True)
        with explained("list", self.local(path)):
            found = self.filesystem.get_file_info(selector)
        kept = [info for info in found if not folders_only or info.type == arrow_fs.FileType.Directory]
        return sorted(info.base_name for info in kept if not info.base_name.startswith("."))

    def files(self, path: str) -> dict[str, arrow_fs.FileInfo]:
        """Every file below a folder, by its path relative to that folder; {} when there is no such folder."""
        selector = arrow_fs.FileSelector(path, allow_not_found=True, recursive=True)
        with explained("list", self.local(path)):
            found = self.filesystem.get_file_info(selector)
        return {info.path.removeprefix(f"{path}/"): info for info in found if info.is_file}

    def size(self, path: str) -> int | None:
        """Bytes of a file, None when it is not there."""
        with explained("look at", self.local(path)):
            info = self.filesystem.get_file_info(path)
        return info.size if info.is_file else None

    def read(self, path: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        with self.filesystem.open_input_stream(path) as file:
            return file.read()

    def write(self, path: str, fill: Callable[[BinaryIO], object]) -> int:
        """Write a file all at once: `fill` writes it, then it is on disk and under its name, or it is not there.

        Returns its size in bytes. Raises StoreError when it can't be written.
        """
        target = self.local(path)
        unfinished = target.with_name(target.name + _UNFINISHED)
        with explained("write", target):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(unfinished, "wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                    size = file.tell()
                os.replace(unfinished, target)
                self._sync_folder(target.parent)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        return size

    def sync(self, path: str) -> None:
        """Force a file that somebody else wrote, and its name, onto the disk."""
        with explained("write", self.local(path)):
            with open(self.local(path), "rb") as file:
                os.fsync(file.fileno())
            self._sync_folder(self.local(path).parent)

    def make_empty(self, path: str) -> Path:
        """An empty folder at `path`, whatever was there before."""
        with explained("make the folder", self.local(path)):
            self.remove(path)
            self.local(path).mkdir(parents=True)
        return self.local(path)

    def remove(self, path: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens when it is not there."""
        target = self.local(path)
        with explained("remove", target):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def move(self, path: str, to: str) -> None:
        """Move a file, or a folder with all it holds, to a name that is not taken. Raises StoreError."""
        with explained("move", self.local(path)):
            self.local(to).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.local(path), self.local(to))

    def remove_empty(self, path: str) -> None:
        """Remove a folder, and the folders above it up to the root, as long as they are empty."""
        folder = self.local(path)
        with contextlib.suppress(OSError):  # not empty, or somebody else was faster
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent

    def lock(self, folder: str) -> Lock:
        """Lock a folder, making it first. Raises Busy, with who holds it, at once when somebody else does."""
        path = self.local(folder) / LOCK
        with explained("lock", path):
            for _ in range(_LOCK_ATTEMPTS):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                except FileNotFoundError:
                    continue  # a collector took the empty folder away in between
                if lock := self._held(path, folder, descriptor):
                    return lock
        raise Busy(folder, None, None, None)

    def _held(self, path: Path, folder: str, descriptor: int) -> Lock | None:
        """The lock on an open lock file, or None when its last holder let go and took the file away."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._same_file(path, descriptor):
                since = datetime.now(UTC).isoformat(timespec="seconds")
                holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder).encode(), 0)
                return Lock(path, descriptor)
        except BlockingIOError:
            holder = self._holder(descriptor)
            os.close(descriptor)
            raise Busy(folder, holder.get("pid"), holder.get("host"), holder.get("since")) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    @staticmethod
    def _same_file(path: Path, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    @staticmethod
    def _holder(descriptor: int) -> dict:
        try:
            return json.loads(os.pread(descriptor, 4096, 0))
        except ValueError:
            return {}

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
