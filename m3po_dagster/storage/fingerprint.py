"""Fingerprints: one hash for everything an artifact is made from, and hashes of the files it starts at."""

import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from m3po_dagster.storage.errors import StoreError, explained

# A file changed within the clock's grain of being hashed could change again under the same time stamp.
_SETTLED_NS = 2_000_000_000
_EXACT_FLOAT = 2**53


def canonical_json(value: object) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII; equal numbers give equal text (1.0 is 1).

    Takes None, booleans, integers, finite floats, strings, lists or tuples, and mappings with string keys.
    Raises TypeError or ValueError that name the place inside `value`.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: object, place: str) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}: only finite numbers have a canonical form")
        return int(value) if value.is_integer() and abs(value) < _EXACT_FLOAT else float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}: keys are strings")
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{place} is a {type(value).__name__}: give plain JSON values (model_dump(mode='json') for settings)"
    )


def fingerprint(
    asset: str, partition: str | None, code_version: str, settings: object, inputs: Mapping[str, str]
) -> str:
    """sha256 (hex) of what an artifact is made from; `inputs` maps each input's name to its data version."""
    parts = {
        "asset": asset,
        "partition": partition,
        "code_version": code_version,
        "settings": settings,
        "inputs": inputs,
    }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Remembered file hashes, so that weights and images are read once and then only looked at.

    A remembered hash counts while the file's path, size, and modification and change times are what they were.
    `read` counts the files whose bytes were read.
    """

    def __init__(self, folder: str | Path) -> None:
        self._database = Path(folder) / "file_hashes.sqlite"
        self.read = 0
        with explained("use the folder", self._database.parent):
            self._database.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"can't use {self._database}: {error}; give write access or free space") from error
            # It is a cache: a damaged one costs a re-read, nothing more.
            self._database.unlink()
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=60, isolation_level=None)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER,"
            " ctime_ns INTEGER, sha256 TEXT) WITHOUT ROWID"
        )
        return connection

    def close(self) -> None:
        """Close the cache; the hashes stay."""
        self._connection.close()

    def __enter__(self) -> "FileHashes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sha256(self, path: str | Path) -> str:
        """sha256 of one file. Raises FileNotFoundError, and StoreError when the file changes while it is read."""
        absolute = os.path.abspath(path)
        before = os.stat(absolute)
        stamp = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        row = self._connection.execute(
            "SELECT size, mtime_ns, ctime_ns, sha256 FROM hashes WHERE path = ?", (absolute,)
        ).fetchone()
        if row and row[:3] == stamp:
            return row[3]
        started = time.time_ns()
        digest = file_sha256(absolute)
        self.read += 1
        after = os.stat(absolute)
        if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != stamp:
            raise StoreError(f"{absolute} changed while it was read: run again when nothing writes to it")
        if started - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS:
            self._connection.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", (absolute, *stamp, digest))
        return digest

    def sha256_many(
        self, paths: Iterable[str | Path], progress: Callable[[int, int], None] | None = None
    ) -> list[str | None]:
        """sha256 of each file in order, None where it is missing; `progress(done, total)` after each one."""
        files = list(paths)
        digests: list[str | None] = []
        for done, path in enumerate(files, start=1):
            try:
                digests.append(self.sha256(path))
            except FileNotFoundError:
                digests.append(None)
            if progress:
                progress(done, len(files))
        return digests


def folder_sha256(folder: str | Path, hashes: FileHashes | None = None) -> str:
    """Identity of a model folder: names and bytes of its files, without hidden files and READMEs.

    Raises StoreError when there is no such folder or nothing in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise StoreError(f"{root} is not a folder: give the folder of a model (config, weights, processor)")
    content = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and not path.name.upper().startswith("README"):
            content[relative.as_posix()] = hashes.sha256(path) if hashes else file_sha256(path)
    if not content:
        raise StoreError(f"{root} has no files: a model folder holds config, weights and processor")
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
