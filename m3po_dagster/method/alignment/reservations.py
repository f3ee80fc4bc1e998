"""What requests in flight may yet take, of every process at work on one ledger.

<root>/.reserved/lock                    held while a process looks and writes
                 <process>-<random>.json what one process has in flight; its lock goes with the process

A killed process's file is left without a lock: it counts no more, and the next to look removes it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from m3po_dagster.method.alignment.turn import Spend

_SUFFIX = ".json"
_LOOK_AGAIN = 0.1
_ROOM = 4096


@dataclass(frozen=True, eq=False)
class Reservation:
    """What a request that a run of a study sends may take at most."""

    study: str
    run: str
    spend: Spend
    thread: int = 0
    """Who holds it, in this process; 0 for another process's."""


class Reserving(Protocol):
    """The reservations of all who are at work on one ledger. Safe to use from many threads."""

    def attempt(self, mine: Reservation, objection: Callable[[list[Reservation]], str | None]) -> str | None:
        """Hold `mine` unless `objection` finds, beside what is held already, why not; then that is returned."""

    def held(self) -> list[Reservation]:
        """Every live reservation."""

    def give_back(self, reservation: Reservation) -> None:
        """Hold it no longer."""

    def wait(self) -> None:
        """Until something may have been given back, here or elsewhere."""


class Reservations:
    """The reservations of all processes in one folder. Get it with `reservations_in`. Safe to use from many threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forget()
        os.register_at_fork(after_in_child=self._close)

    def _forget(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._mine: list[Reservation] = []
        self._descriptor: int | None = None
        self._name = ""

    def _close(self) -> None:
        # The lock on the file would stay as long as a child keeps it open.
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._forget()

    @contextmanager
    def exclusive(self) -> Iterator[list[Reservation]]:
        """Every live reservation, while no other thread or process takes or gives back one. Raises OSError."""
        with self._changed, self._locked():
            yield self._mine + self._of_others()

    def attempt(self, mine: Reservation, objection: Callable[[list[Reservation]], str | None]) -> str | None:
        """Hold `mine` unless `objection` finds, beside what is held already, why not; then that is returned.

        Raises OSError, and what `objection` raises; then `mine` is not held.
        """
        with self.exclusive() as held:
            found = objection(held)
            if found is None:
                self.take(mine)
            return found

    def held(self) -> list[Reservation]:
        """Every live reservation. Raises OSError."""
        with self.exclusive() as held:
            return held

    def take(self, reservation: Reservation) -> None:
        """Within `exclusive`: hold a reservation. Raises OSError when it can't be written; then it is not held."""
        self._write([*self._mine, reservation])
        self._mine.append(reservation)

    def give_back(self, reservation: Reservation) -> None:
        """Raises OSError."""
        with self._changed:
            self._mine.remove(reservation)
            self._changed.notify_all()
            with self._locked():
                self._write(self._mine)

    def wait(self) -> None:
        """Until something may have been given back, here or elsewhere."""
        with self._changed:
            self._changed.wait(_LOOK_AGAIN)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _of_others(self) -> list[Reservation]:
        found = []
        for name in os.listdir(self._folder):
            if not name.endswith(_SUFFIX) or name == self._name:
                continue
            path = self._folder / name
            with open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    rows = json.loads(file.read() or b"[]")
                    found += [Reservation(row["study"], row["run"], Spend(**row["spend"])) for row in rows]
                else:
                    path.unlink()
        return found

    def _write(self, mine: list[Reservation]) -> None:
        sums: dict[tuple[str, str], Spend] = {}
        for one in mine:
            sums[one.study, one.run] = sums.get((one.study, one.run), Spend()) + one.spend
        rows = [{"study": study, "run": run, "spend": asdict(spend)} for (study, run), spend in sums.items()]
        descriptor = self._file()
        before = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        # Padded, it needs no new room on the disk but where it is longer than ever.
        content = json.dumps(rows).encode().ljust(max(len(before), _ROOM))
        try:
            _write_whole(descriptor, content)
        except OSError:
            _write_whole(descriptor, before)
            raise

    def _file(self) -> int:
        if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
        if self._descriptor is None:
            self._name = f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._folder / self._name, flags, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return self._descriptor


def _write_whole(descriptor: int, content: bytes) -> None:
    rest, at = memoryview(content), 0
    while at < len(content):
        at += os.pwrite(descriptor, rest[at:], at)


def reservations_in(folder: Path) -> Reservations:
    """The reservations of a folder, the same object for the same folder in all of a process."""
    return _reservations_in(folder.resolve())


_reservations_in = cache(Reservations)
