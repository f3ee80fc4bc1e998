"""What was found out about files, remembered: weights and images are read once, and after that only looked at."""

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.s3_files.path import S3Path
from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.fingerprint import file_sha256

# A file changed within the clock's grain of being read could change again under the same time stamp.
_SETTLED_NS = 2_000_000_000
_CREATE = (
    "CREATE TABLE IF NOT EXISTS facts"
    " (path TEXT, kind TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, value TEXT,"
    " PRIMARY KEY (path, kind)) WITHOUT ROWID"
)


@dataclass(frozen=True)
class Look:
    """A file before it is read: where it lies, how it looks from outside, and when.

    An object of a bucket has its ETag beside its URL, which tells any change, and no times.
    """

    path: str
    stamp: tuple[int, int, int]
    started: int
    source: str | S3Path

    @classmethod
    def at(cls, path: str | Path) -> "Look":
        """Looks at a file. Raises FileNotFoundError, or another OSError when it can't be looked at; StoreError."""
        if isinstance(path, S3Path):
            size, etag = path.version
            return cls(f"{path} {etag}", (size, 0, 0), time.time_ns(), path)
        absolute = os.path.abspath(path)
        return cls(absolute, _stamp(absolute), time.time_ns(), absolute)

    @property
    def settled(self) -> bool:
        """Whether the file was last changed long enough before this look for its times to tell a later change."""
        return self.started - max(self.stamp[1:]) > _SETTLED_NS

    @property
    def changed(self) -> bool:
        """Whether the file looks otherwise by now."""
        now = Look.at(self.source)
        return (now.path, now.stamp) != (self.path, self.stamp)


class FileFacts:
    """A cache of facts about files in one SQLite file, shared by threads and processes.

    A fact counts while the file's path, size, and modification and change times are what they were.
    `files_read` counts the files whose bytes were read for their hash.
    """

    def __init__(self, database: str | Path) -> None:
        """Open or make `database`; a damaged one is begun anew. Raises StoreError when it can't be written."""
        self._database = Path(database)
        self.files_read = 0
        with explained("use the folder", self._database.parent):
            self._database.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError:
            self._connection = self._begin_anew()

    @classmethod
    def kept_in(cls, folder: Path) -> "FileFacts":
        """The cache in this folder, a store's `cache_folder`."""
        return cls(folder / "file-facts.sqlite")

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            # A write-ahead log spares a wait for the disk after every one of thousands of images.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_CREATE)
        except sqlite3.Error:
            # Closed later, it would remove the log of the database that is begun in its place.
            connection.close()
            raise
        return connection

    def _begin_anew(self) -> sqlite3.Connection:
        with explained("remove the damaged", self._database):
            # The log first: one that was left would be played back into the new database.
            for end in ("-wal", "-shm", ""):
                Path(f"{self._database}{end}").unlink(missing_ok=True)
        try:
            return self._open()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"can't use {self._database}: {error}; give write access, free some space, or remove the file"
        )

    def close(self) -> None:
        """Close the cache; the facts stay."""
        self._connection.close()

    def sha256(self, path: str | Path) -> str:
        """sha256 (hex) of a file's bytes.

        Raises FileNotFoundError, and StoreError when the file changes while it is read.
        """
        look = Look.at(path)
        known = self.known(look, "sha256")
        if known is None:
            known = file_sha256(look.source)
            self.files_read += 1
            self.keep(look, "sha256", known)
        return known

    def look(self, path: str | Path) -> Look:
        """How a file looks now. Raises OSError where it can't be looked at."""
        return Look.at(path)

    def known(self, look: Look, kind: str) -> str | None:
        """The fact of this kind, if the file still looks as it did when it was kept."""
        row = self._execute(
            "SELECT size, mtime_ns, ctime_ns, value FROM facts WHERE path = ? AND kind = ?", look.path, kind
        )
        return row[3] if row and row[:3] == look.stamp else None

    def keep(self, look: Look, kind: str, value: str) -> None:
        """Remembers what was read of a file after `look`.

        Raises StoreError when the file was changed in the meantime: what was read may be neither old nor new.
        """
        if look.changed:
            raise StoreError(f"{look.source} changed while it was read: run again when nothing writes to it")
        if look.settled:
            self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?)", look.path, kind, *look.stamp, value)

    def _execute(self, statement: str, *values: object) -> tuple | None:
        try:
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
