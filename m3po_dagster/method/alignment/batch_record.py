"""What this machine knows of its batches: a folder each, written before every step that the service sees.

    <folder>/lock                    held for the moment in which requests are claimed
    <folder>/<id>/lock               held by the process that submits and collects the batch
                  record.json        whose it is, and how far it has come
                  keys               its requests, one key a line, in the order of the file
                  requests.jsonl     what is uploaded; until the batch exists
                  output.jsonl       the replies as the service gave them; errors.jsonl: why others have none
                  replied            the keys that have a reply, once it is collected

The kernel drops a lock when its process dies, so what a killed process left is taken over and goes on.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

LOCK, RECORD, KEYS, REPLIED = "lock", "record.json", "keys", "replied"
REQUESTS, OUTPUT, ERRORS = "requests.jsonl", "output.jsonl", "errors.jsonl"


class Asker(BaseModel):
    """Who asks, for the records."""

    model_config = ConfigDict(frozen=True)

    study: str
    run: str
    scorer: str


class Record(BaseModel):
    """A batch as this machine knows it; `step` is the last that is known to be done."""

    model_config = ConfigDict(frozen=True)

    id: str
    base_url: str
    model: str
    asker: Asker
    at: str
    step: Literal["claimed", "uploaded", "submitted", "collected"] = "claimed"
    count: int
    keys_sha256: str
    file_id: str | None = None
    batch_id: str | None = None
    status: str | None = None
    answered: int | None = None

    def holds_just(self, keys: Sequence[str]) -> bool:
        """Whether these are the requests of its file, all of them in their order."""
        return self.keys_sha256 == _digest(keys)

    @property
    def file_name(self) -> str:
        """The name of its input file at the service, by which it is found again."""
        return f"m3po-{self.id}.jsonl"


class BatchRecords:
    """The records in a folder of this machine; safe with several processes and threads."""

    def __init__(self, folder: Path) -> None:
        """The folder is made with the first record."""
        self.folder = Path(folder)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Nobody else claims requests in this folder meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def all(self, base_url: str, model: str) -> Iterator[Record]:
        """The records of a model at an endpoint, oldest first. To be called while claiming.

        Raises ValueError for a record that can't be read.
        """
        for name in sorted(path.name for path in self.folder.iterdir() if path.is_dir()):
            record = self.read(name)
            if record is None:
                # Nobody makes a record while we claim: a process was killed as it made or removed this one.
                shutil.rmtree(self.folder / name, ignore_errors=True)
            elif (record.base_url, record.model) == (base_url, model):
                yield record

    def read(self, record_id: str) -> Record | None:
        """A record as it is now, None when it is gone. Raises ValueError when it can't be read."""
        path = self.folder / record_id / RECORD
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            raise ValueError(
                f"{path} is no record of a batch; see what became of the batch at the service, then remove its folder"
            ) from None

    def keys(self, record_id: str, of: str = KEYS) -> list[str]:
        """The keys of a record in the order of its file, or those of REPLIED; [] when it is gone."""
        try:
            return (self.folder / record_id / of).read_text("ascii").split()
        except FileNotFoundError:
            return []

    def new(self, base_url: str, model: str, asker: Asker, keys: Sequence[str]) -> "HeldRecord":
        """A record that claims these keys, held. To be called while claiming."""
        now = datetime.now(UTC)
        record = Record(
            id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(6)}",
            base_url=base_url,
            model=model,
            asker=asker,
            at=now.isoformat(timespec="seconds"),
            count=len(keys),
            keys_sha256=_digest(keys),
        )
        folder = self.folder / record.id
        folder.mkdir()
        held = HeldRecord(folder, record, _locked(folder / LOCK))
        held.write_keys(keys)
        held.save()
        return held

    def hold(self, record_id: str) -> "HeldRecord | None":
        """A record held against everybody else; None when somebody holds it, or it is gone."""
        folder = self.folder / record_id
        try:
            descriptor = _locked(folder / LOCK)
        except (BlockingIOError, FileNotFoundError):
            return None
        # Its last holder may have taken the folder away between our opening and our locking.
        record = self.read(record_id)
        if record is None:
            os.close(descriptor)
            return None
        return HeldRecord(folder, record, descriptor)


class HeldRecord:
    """A record that this process alone may change, until `release`."""

    def __init__(self, folder: Path, record: Record, descriptor: int) -> None:
        self.folder, self.record, self._descriptor = folder, record, descriptor

    @property
    def id(self) -> str:
        """The record's id."""
        return self.record.id

    def save(self, **changed: object) -> None:
        """Writes the record with these fields changed; with the process killed right after, it is on disk."""
        self.record = self.record.model_copy(update=changed)
        _write(self.folder / RECORD, self.record.model_dump_json(indent=1) + "\n")

    def write_keys(self, keys: Sequence[str], of: str = KEYS) -> None:
        """Replaces the keys, or those of REPLIED."""
        _write(self.folder / of, "".join(f"{key}\n" for key in keys))

    def narrow(self, keys: Sequence[str]) -> None:
        """Gives back the claim to all but these keys."""
        self.write_keys(keys)
        self.save(count=len(keys), keys_sha256=_digest(keys))

    def remove(self) -> None:
        """Takes the record away: it claims nothing any more."""
        (self.folder / RECORD).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Others may take the record over; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()
