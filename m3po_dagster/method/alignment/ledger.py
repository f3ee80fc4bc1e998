"""The ledger: every reply of a served judge, kept for good under what was asked, so that nothing is paid for twice.

<root>/<model>/<time>-<process>-<random>.jsonl   a line a reply, a file a writer, added to and never rewritten
       .claims                                   its bytes are locked, a byte a key: who asks what right now

A file a writer, so that a line torn by a kill is the last of its file and spoils no other. What other processes add is
seen at the next look. The locks hold between the processes of one machine; for several machines there is
`bucket_ledger`.
"""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from m3po_dagster.method.alignment.claims import claims_on
from m3po_dagster.method.alignment.ledger_errors import explained
from m3po_dagster.method.alignment.ledger_index import LedgerIndex, Totals
from m3po_dagster.method.alignment.ledger_writer import Writer
from m3po_dagster.method.alignment.reservations import Reserving, reservations_in
from m3po_dagster.method.alignment.turn import Spend, Turn, short

FOLDER = "ledger"
"""The ledger's folder in a store."""

_CLAIMS, _RESERVED = ".claims", ".reserved"
_OPEN: "WeakSet[Ledger]" = WeakSet()


class LineWriter(Protocol):
    """What keeps lines; safe to use from many threads."""

    def add(self, line: bytes) -> None:
        """Keep a line, its line break included. Raises OSError, or what the ledger's `explained` knows."""


class Ledger:
    """The replies under one local folder. Safe to use from many threads, and with other processes at the same folder.

    It is read whole at the first use (seconds for 600,000 replies), and from then on where it grew: a process does best
    with one. A forked child begins anew.
    """

    mirrored = False
    """Whether the folder is a copy of what lies elsewhere, whose files grow without their writers being here."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or made yet."""
        self.folder = folder
        self._begin()
        _OPEN.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._index = LedgerIndex(self.folder, self.mirrored)
        self._writers: dict[str, LineWriter] = {}

    @property
    def location(self) -> str:
        """Where the replies are kept, for a reader."""
        return str(self.folder)

    def turns(self, key: str) -> tuple[Turn, ...]:
        """All replies to a key in the order of `turn`, those that other processes have added by now too."""
        return self._turns(key, fresh=False)

    def _turns(self, key: str, fresh: bool) -> tuple[Turn, ...]:
        with self._refreshed(fresh) as index:
            found = []
            for name, place, line in index.lines(short(key)):
                try:
                    found.append((name, Turn.from_line(line)))
                except ValueError:
                    index.pass_over(place)
        # Every reader puts them in the same order, whichever file it met first.
        found.sort(key=lambda one: (one[1].turn, one[1].at, one[0]))
        return tuple(turn for _, turn in found if turn.key == key)

    @contextmanager
    def asking(self, key: str) -> Iterator[tuple[Turn, ...]]:
        """Hold a key against all other threads and processes; gives the turns known once it is held.

        Waits for whoever holds it. With a killed process its hold is gone. Raises LedgerError, and RuntimeError when
        this thread holds the key already.
        """
        with ExitStack() as stack:
            with self.explained("hold a key in"):
                stack.enter_context(self._held(key))
            yield self._turns(key, fresh=True)

    def _held(self, key: str) -> AbstractContextManager[None]:
        return claims_on(self.folder / _CLAIMS).held(key)

    def add(self, turn: Turn) -> None:
        """Keep a turn; once this returns, a kill of the process does not lose it.

        Raises LedgerError when it can't be written, with a full disk for one.
        """
        with self._lock:
            name = _folder_name(turn.model)
            if name not in self._writers:
                self._writers[name] = self._writer(name)
            writer = self._writers[name]
        with self.explained("keep a reply in", name):
            writer.add(turn.to_line())

    def _writer(self, name: str) -> LineWriter:
        return Writer(self.folder / name)

    def reservations(self) -> Reserving:
        """What requests in flight may yet take, of every process at work on this ledger."""
        return reservations_in(self.folder / _RESERVED)

    def spent(self, *, study: str | None = None, run: str | None = None, model: str | None = None) -> Spend:
        """What all replies took, or those that this study, run and model asked for."""
        wanted = (study, run, model)
        with self._refreshed() as index:
            sums = [
                totals.spend
                for whose, totals in index.totals.items()
                if all(want in (None, has) for want, has in zip(wanted, whose, strict=True))
            ]
        return sum(sums, Spend())

    def measured(self, model: str) -> Spend:
        """As `spent`, of those replies of a model alone that say what they took: what a request takes on average."""
        with self._refreshed(fresh=False) as index:
            sums = [totals.reported for (_, _, whose), totals in index.totals.items() if whose == model]
        return sum(sums, Spend())

    def totals(self) -> Mapping[tuple[str, str, str], Totals]:
        """What was taken, by study, run and model."""
        with self._refreshed() as index:
            return {whose: replace(totals) for whose, totals in sorted(index.totals.items())}

    def unreadable(self) -> int:
        """Lines that are no turn and are passed over: torn by a kill, or damaged."""
        with self._refreshed() as index:
            return index.unreadable

    def explained(self, action: str, name: str = "") -> AbstractContextManager[None]:
        """Turns what can go wrong with the ledger in the block into a LedgerError that says what to do."""
        return explained(action, self.folder / name)

    def _catch_up(self, fresh: bool) -> None:
        """Brings the folder up to date where it is a copy; not `fresh`: as of a moment ago will do."""

    @contextmanager
    def _refreshed(self, fresh: bool = True) -> Iterator[LedgerIndex]:
        with self.explained("read"):
            self._catch_up(fresh)
            with self._lock:
                self._index.refresh()
                yield self._index


def _folder_name(model: str) -> str:
    """A model's name as a folder. Two names that make one folder share it: each line says its model."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-")[:100] or "model"


def _begin_in_child() -> None:
    for ledger in list(_OPEN):
        ledger._begin()


# A child has none of the parent's threads, so nobody would let go of a lock that one of them held, and the file of a
# writer is its process's own.
os.register_at_fork(after_in_child=_begin_in_child)
