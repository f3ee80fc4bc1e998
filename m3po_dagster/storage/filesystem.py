"""What a store asks of the disk below it: listing and reading through pyarrow, durable writes and locks of its own.

Everything that only a local folder can do (rename, fsync, flock, local paths) is in this class and nowhere else;
`bucket_folder.BucketFolder` is the other kind of storage, a class with these methods.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from m3po_dagster.storage.errors import Busy, StoreError, explained
from m3po_dagster.storage.fingerprint import file_sha256

LOCK = "lock"
SCRATCH = "scratch"
CACHE = ".cache"
Item, Answer = TypeVar("Item"), TypeVar("Answer")
_UNFINISHED = ".tmp"
_ONE_SLASH = re.compile(r"\w+:/(?!/)")
_LOCK_ATTEMPTS = 100
_GIVE = "give a local folder, or s3://bucket/prefix"


class Lock:
    """An exclusive lock on one folder of the store; the kernel drops it when its process dies, however it dies."""

    attempt = ""
    """Folder of its own that a holder writes into: none, as nobody else writes while the lock is held."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def check(self) -> None:
        """Raises StoreError when somebody else may hold the lock by now: the kernel lets that never happen."""

    def release(self) -> None:
        """Give the lock back; its file goes first, so that a waiting writer never locks a file nobody will see."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class LocalFolder:
    """A store's root as a folder of this machine; every path is relative to it, with forward slashes."""

    def __init__(self, root: str | Path) -> None:
        """`root` is a path or a file:// URL. Raises StoreError for other kinds of storage."""
        if _ONE_SLASH.match(str(root)):
            raise StoreError(
                f"{root} has one slash where a URL has two: write s3://bucket/prefix or file:///folder "
                f"(./{root} is a folder of that name)"
            )
        if "://" in str(root):
            try:
                filesystem, path = arrow_fs.FileSystem.from_uri(str(root))
            except (pa.ArrowInvalid, OSError) as error:
                raise StoreError(f"{root} is not a URL of a store: {error}; {_GIVE}") from error
            if not isinstance(filesystem, arrow_fs.LocalFileSystem):
                raise StoreError(
                    f"{root} is not a URL of a store: storage of type {filesystem.type_name} is not served; {_GIVE}"
                )
        else:
            path = str(root)
        self.root = Path(path).expanduser().absolute()
        self.filesystem = arrow_fs.SubTreeFileSystem(str(self.root), arrow_fs.LocalFileSystem())

    look_lasts = 0.0
    """Seconds for which what was seen here may be taken to be here still, by who looks often."""

    keeps_whole = False
    """Whether a file that was once written can't come to be cut short: a disk's can, when its machine dies."""

    @property
    def location(self) -> str:
        """The folder, for messages and for what else lies beside the artifacts."""
        return str(self.root)

    @property
    def cache_folder(self) -> Path:
        """Where what can be found out again is kept."""
        return self.root / CACHE

    def exists(self) -> bool:
        """Whether the folder is there."""
        return self.root.is_dir()

    def local(self, path: str) -> Path:
        """The path on this machine."""
        return self.root / path

    def where(self, path: str) -> str:
        """The path as messages name it."""
        return str(self.local(path))

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
        """What `function` gives for each item, in their order."""
        return [function(item) for item in items]

    def artifacts(self, asset: str | None = None) -> Iterator[tuple[str, str, str]]:
        """Asset, partition and fingerprint of every folder at that depth, as they are named there."""
        for name in self.children("", folders_only=True) if asset is None else [asset]:
            for partition in self.children(name, folders_only=True):
                for fingerprint in self.children(f"{name}/{partition}", folders_only=True):
                    yield name, partition, fingerprint

    def present(self, paths: Iterable[str]) -> set[str]:
        """Those of these files that are there."""
        return {path for path in paths if self.size(path) is not None}

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

    def read(self, path: str) -> bytes | None:
        """A whole file; None when it is not there. Raises OSError when it can't be read."""
        if self.size(path) is None:
            return None
        with self.filesystem.open_input_stream(path) as file:
            return file.read()

    def columns(self, path: str, size: int, names: Sequence[str]) -> pa.Table:
        """Columns of a Parquet file. Raises OSError, pa.ArrowException."""
        with self.filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).read(names)

    def sha256(self, path: str, size: int) -> str:
        """sha256 (hex) of a file. Raises OSError."""
        return file_sha256(self.local(path))

    def provide(self, path: str, size: int, whole: Callable[[Path], bool], always_check: bool) -> bool:
        """See to it that `local(path)` has the file, and with `always_check` that it is `whole`; whether it is.

        Raises StoreError when it can't be read.
        """
        with explained("read", self.local(path)):
            return not always_check or whole(self.local(path))

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

    def write_once(self, path: str, text: bytes) -> bool:
        """Write a file unless somebody else did; whether it is this one. The lock sees to it that it is."""
        self.write(path, lambda file: file.write(text))
        return True

    def take_in(self, path: str) -> None:
        """Force a file that somebody else wrote into a folder of `make_empty`, and its name, onto the disk."""
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

    def clear(self, folder: str, keep: Collection[str], seen: Collection[str]) -> None:
        """Remove all that is in a folder but the files `keep`, by their paths relative to it.

        For the lock's holder: nobody else writes there, so that what wasn't `seen` is a link or an empty folder.
        """
        top = self.local(folder)
        with explained("remove", top):
            for path, folders, files in os.walk(top, topdown=False):
                for name in [*files, *(name for name in folders if (Path(path) / name).is_symlink())]:
                    file = Path(path) / name
                    if str(file.relative_to(top)) not in keep:
                        file.unlink(missing_ok=True)
                if Path(path) != top and not os.listdir(path):
                    os.rmdir(path)

    @contextlib.contextmanager
    def scratch(self, folder: str, lock: Lock, whole: str) -> Iterator[Path]:
        """A folder that one attempt at an artifact leaves to the next on this machine, with all that is in it."""
        path = self.local(f"{folder}/{SCRATCH}")
        with explained("make the folder", path):
            path.mkdir(parents=True, exist_ok=True)
        yield path

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

    def busy(self, folder: str) -> bool:
        """Whether somebody holds the lock on a folder; nothing is written."""
        path = self.local(folder) / LOCK
        with explained("look at", path), contextlib.suppress(FileNotFoundError), open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

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
