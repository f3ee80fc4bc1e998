"""Remembered file hashes: weights and images are read once, and after that only looked at."""

import os
import sqlite3
import time
from pathlib import Path

from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.fingerprint import file_sha256

# A file changed within the clock's grain of being hashed could change again under the same time stamp.
_SETTLED_NS = 2_000_000_000
_CREATE = (
    "CREATE TABLE IF NOT EXISTS hashes"
    " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT) WITHOUT ROWID"
)


class FileHashes:
    """A cache of file hashes in one SQLite file, shared by threads and processes.

    A remembered hash counts while the file's path, size, and modification and change times are what they were.
    `files_read` counts the files whose bytes were read.
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
            self._database.unlink()
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=60, isolation_level=None, check_same_thread=False)
        # A write-ahead log spares a wait for the disk after every one of thousands of images.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_CREATE)
        return connection

    def _unusable(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"can't use {self._database}: {error}; give write access, free some space, or remove the file"
        )

    def close(self) -> None:
        """Close the cache; the hashes stay."""
        self._connection.close()

    def sha256(self, path: str | Path) -> str:
        """sha256 (hex) of a file's bytes.

        Raises FileNotFoundError, and StoreError when the file changes while it is read.
        """
        absolute = os.path.abspath(path)
        stamp = _stamp(absolute)
        row = self._execute("SELECT size, mtime_ns, ctime_ns, sha256 FROM hashes WHERE path = ?", absolute)
        if row and row[:3] == stamp:
            return row[3]
        started = time.time_ns()
        digest = file_sha256(absolute)
        self.files_read += 1
        if _stamp(absolute) != stamp:
            raise StoreError(f"{absolute} changed while it was read: run again when nothing writes to it")
        if started - max(stamp[1:]) > _SETTLED_NS:
            self._execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", absolute, *stamp, digest)
        return digest

    def _execute(self, statement: str, *values: object) -> tuple | None:
        try:
            return self._connection.execute(statement, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
