"""Local folders where a writer prepares what it sends to a bucket; those of dead writers are swept away."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3po_dagster.storage.errors import explained

_LOCK = "lock"


class Staging:
    """A folder below `root` that is this writer's while it lives; the kernel tells the dead from the living."""

    def __init__(self, root: Path, name: str) -> None:
        """Make the folder `root`/`name` ('/'-separated), and remove those whose writers have died."""
        self._root, self._folder = root, root / name
        with explained("make the folder", self._folder), _alone(root):
            _sweep(root)
            self._folder.mkdir(parents=True)
            self._descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder with all it holds."""
        try:
            with _alone(self._root):
                _removed(self._folder, self._root)
        finally:
            os.close(self._descriptor)  # what is left, if anything, is nobody's then, and the next writer sweeps it


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Nobody else makes or sweeps a folder meanwhile: one just made has no lock yet."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / _LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(root: Path) -> None:
    for lock in list(root.glob(f"*/*/*/*/{_LOCK}")):
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _removed(lock.parent, root)


def _removed(folder: Path, root: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    while (folder := folder.parent) != root:
        try:
            folder.rmdir()
        except OSError:  # another writer's is beside it
            return
