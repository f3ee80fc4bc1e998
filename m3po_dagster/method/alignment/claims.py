"""Who is at work on a key: one thread of one process of this machine at a time.

Between processes a claim is a POSIX lock on one byte of a lock file, which the kernel drops when the process dies,
however it dies. POSIX locks belong to the process, which decides three things here. Threads are kept apart by a table
of this process. The file stays open for the process's life: closing *any* descriptor of it would drop every claim.
And a forked child starts with none. (Open-file locks would outlive a killed process in its forked children.)
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25


class Claims:
    """The claims on the keys of one lock file. Get it with `claims_on`: a process may have one only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._changed = threading.Condition()
        self._holders: dict[int, int] = {}
        self._descriptor: int | None = None

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Hold a key (hex) against all other threads and processes, waiting for it first.

        Raises OSError when the lock file can't be opened, RuntimeError when this thread holds the key already.
        """
        place = int(key[:15], 16)
        self._hold_here(key, place)
        try:
            descriptor = self._hold_everywhere(place)
            try:
                yield
            finally:
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)
        finally:
            with self._changed:
                del self._holders[place]
                self._changed.notify_all()

    def _hold_here(self, key: str, place: int) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._holders.get(place) == me:
                raise RuntimeError(f"this thread holds the key {key} already")
            self._changed.wait_for(lambda: place not in self._holders)
            self._holders[place] = me

    def _hold_everywhere(self, place: int) -> int:
        """Lock a byte and return the descriptor that it was locked through.

        The kernel's own waiting is of no use: it takes two processes whose threads wait for each other's keys for a
        deadlock and refuses.
        """
        pause = _FIRST_PAUSE
        while True:
            descriptor = self._open()
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that is taken
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return descriptor

    def _open(self) -> int:
        with self._changed:
            if self._descriptor is None or not self._is_current(self._descriptor):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # A descriptor that is replaced stays open: claims may be held through it.
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        """False when the folder was removed, or made anew, under this process."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return False


def claims_on(path: Path) -> Claims:
    """The claims on a lock file, the same object for the same file in all of a process."""
    return _claims_on(path.resolve())


_claims_on = cache(Claims)
