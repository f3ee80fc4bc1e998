"""Where each turn of a ledger lies, and what all took: the files' growing ends are read, and no line twice."""

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from m3po_dagster.method.alignment.turn import Spend, key_and_head

SUFFIX = ".jsonl"
_CHUNK = 1 << 22
_counted = itemgetter("prompt_tokens", "cached_tokens", "completion_tokens", "cost")
_OFFSET_BITS = 48
# A folder changed within the clock's grain of being listed could change again under the same time stamp.
_SETTLED_NS = 2_000_000_000
_QUIET_NS = 5_000_000_000


@dataclass
class Totals:
    """What one study's run took of one model. `first` and `last` are the earliest and latest times of a reply."""

    requests: int = 0
    repairs: int = 0
    reporting: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    first: str = ""
    last: str = ""

    def add(self, head: dict) -> None:
        """Count one turn. Raises KeyError, and counts nothing, where a field is missing."""
        prompt, cached, completion, cost = _counted(head)
        repair, at = head["purpose"] == "repair", head["at"]
        self.requests += 1
        self.repairs += repair
        self.reporting += prompt is not None
        self.prompt_tokens += prompt or 0
        self.cached_tokens += cached or 0
        self.completion_tokens += completion or 0
        self.cost += cost or 0.0
        self.first = min(self.first or at, at)
        self.last = max(self.last, at)

    @property
    def spend(self) -> Spend:
        """The sum as a Spend."""
        return Spend(self.requests, self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.cost)

    @property
    def reported(self) -> Spend:
        """As `spend`, but `requests` are those alone whose reply says how many tokens it took."""
        return replace(self.spend, requests=self.reporting)


@dataclass(eq=False)
class _File:
    path: Path
    number: int
    position: int = 0
    """Everything before it is indexed; it stands after a line break."""
    torn: bool = False
    """Whether something without a line break lies behind `position`."""


@dataclass(eq=False)
class _Folder:
    path: Path
    listed: int = 0
    """The folder's change time when it was last listed, 0 when it may have changed since."""
    names: set[str] = field(default_factory=set)


class LedgerIndex:
    """The lines of every file of a ledger by key. Not safe to use from several threads at once."""

    def __init__(self, root: Path, mirrored: bool = False) -> None:
        """`mirrored`: the files are copies, which grow without their writers being here, and may be removed."""
        self._mirrored = mirrored
        self._top = _Folder(root)
        self._folders: list[_Folder] = []
        self._files: list[_File] = []
        self._growing: list[_File] = []
        # 600,000 keys as objects of any kind would take several times the memory of whole numbers.
        self._places: dict[bytes, int | tuple[int, ...]] = {}
        self._broken: set[int] = set()
        self.totals: dict[tuple[str, str, str], Totals] = {}
        """By study, run and model."""

    @property
    def unreadable(self) -> int:
        """Lines that are no turn: torn by a kill or a full disk, damaged, or (for a moment) still being written."""
        return len(self._broken) + sum(file.torn for file in self._files)

    def lines(self, key: bytes) -> Iterator[tuple[str, int, bytes]]:
        """The name of its file, its place and the line, for every line of a key."""
        found = self._places.get(key, ())
        for place in (found,) if isinstance(found, int) else found:
            file = self._files[place >> _OFFSET_BITS]
            try:
                with open(file.path, "rb") as opened:
                    opened.seek(place & ((1 << _OFFSET_BITS) - 1))
                    yield file.path.name, place, opened.readline()
            except FileNotFoundError:
                continue  # a ledger removed under a running process holds nothing

    def pass_over(self, place: int) -> None:
        """Count a line as unreadable."""
        self._broken.add(place)

    def refresh(self) -> None:
        """Read what has been written since the last time, by anybody."""
        self._look_for_files()
        self._growing = [file for file in self._growing if not self._read_on(file)]

    def _look_for_files(self) -> None:
        for name in _new_names(self._top):
            if not name.startswith(".") and (self._top.path / name).is_dir():
                self._folders.append(_Folder(self._top.path / name))
        for folder in self._folders:
            for name in _new_names(folder):
                if name.endswith(SUFFIX):
                    self._files.append(_File(folder.path / name, len(self._files)))
                    self._growing.append(self._files[-1])

    def _read_on(self, file: _File) -> bool:
        """Index a file's new lines; whether it can't grow any more."""
        try:
            status = os.stat(file.path)
        except FileNotFoundError:
            return not self._mirrored
        left = b""
        if status.st_size > file.position:
            with open(file.path, "rb") as opened:
                opened.seek(file.position)
                while chunk := opened.read(_CHUNK):
                    *lines, left = (left + chunk).split(b"\n")
                    for line in lines:
                        self._add(line, file)
        file.torn = bool(left)
        return not self._mirrored and self._is_finished(file, status)

    def _add(self, line: bytes, file: _File) -> None:
        place = file.number << _OFFSET_BITS | file.position
        file.position += len(line) + 1
        try:
            key, head = key_and_head(line)
            whose = (head["study"], head["run"], head["model"])
            self.totals.setdefault(whose, Totals()).add(head)
        except (ValueError, KeyError, TypeError):
            self.pass_over(place)
            return
        known = self._places.get(key)
        if known is None:
            self._places[key] = place
        else:
            self._places[key] = (*((known,) if isinstance(known, int) else known), place)

    def _is_finished(self, file: _File, status: os.stat_result) -> bool:
        """Whether its writer is gone for good, so that thousands of old files need no look for every request.

        A writer holds a lock on its file for its life, and takes it before it writes: an empty file tells nothing.
        """
        if not status.st_size or time.time_ns() - status.st_mtime_ns < _QUIET_NS:
            return False
        with open(file.path, "rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return os.fstat(opened.fileno()).st_size == status.st_size


def _new_names(folder: _Folder) -> list[str]:
    try:
        changed = os.stat(folder.path).st_mtime_ns
        if changed == folder.listed:
            return []
        settled = time.time_ns() - changed > _SETTLED_NS
        names = set(os.listdir(folder.path)) - folder.names
    except FileNotFoundError:
        return []
    folder.listed = changed if settled else 0
    folder.names |= names
    return sorted(names)
