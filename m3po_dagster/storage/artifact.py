"""A committed artifact: its manifest, its tables, its files. Immutable."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from m3po_dagster.storage.content import column_hashes, table_hash
from m3po_dagster.storage.errors import Damaged, StoreError, explained
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.storage.manifest import FORMAT, FileEntry, Manifest, TableEntry, seal_of
from m3po_dagster.storage.names import ArtifactKey

if TYPE_CHECKING:
    from m3po_dagster.storage.bucket_folder import Disk

MANIFEST = "manifest.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """What `ArtifactStore.find` and `Draft.commit` give."""

    key: ArtifactKey
    manifest: Manifest
    _disk: "Disk" = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Hash of what it was made from."""
        return self.manifest.fingerprint

    @property
    def data_version(self) -> str:
        """Hash of its content."""
        return self.manifest.data_version

    @property
    def folder(self) -> Path:
        """Local folder that holds it; of one in a bucket, the folder that copies of its files come into."""
        return self._disk.local(self.key.folder)

    @property
    def location(self) -> str:
        """The folder or URL that holds it, for messages."""
        return self._disk.where(self.key.folder)

    def where(self, name: str) -> str:
        """Path or URL of a file, a folder of files or a table's Parquet file, for messages; nothing is fetched."""
        return self._disk.where(self._at(name))

    def _at(self, name: str) -> str:
        return "/".join(part for part in (self.key.folder, self.manifest.attempt, name) if part)

    def table(self, name: str = "data", columns: list[str] | None = None) -> pa.Table:
        """A table, or some of its columns, verified against the manifest's content hashes.

        Raises StoreError when there is no such table or column, Damaged when its file is not what was committed.
        """
        entry = self.manifest.tables.get(name)
        if entry is None:
            raise StoreError(f"{self.key} has no table {name!r}: it has {sorted(self.manifest.tables)}")
        wanted = list(entry.columns) if columns is None else columns
        unknown = [column for column in wanted if column not in entry.columns]
        if unknown:
            raise StoreError(f"{self.key}: table {name!r} has no columns {unknown}: it has {list(entry.columns)}")
        path = self._at(f"{name}.parquet")
        try:
            with unreadable_disk(self._disk.where(path)):
                table = self._disk.columns(path, entry.bytes, wanted).select(wanted)
            different = [
                column
                for column, digest in zip(wanted, column_hashes(table), strict=True)
                if digest != entry.columns[column].hash
            ]
            reason = f"columns {different} are not what was committed" if different else ""
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
        if reason:
            raise Damaged(self._disk.where(path), self.key, reason)
        return table

    def path(self, name: str) -> Path:
        """Local path of a file, a folder of files or a table's Parquet file, to be read only.

        What lies in a bucket is copied first, unless it was before. Files are verified against the manifest's hashes, a
        table that was not copied now when `table` reads it. Raises StoreError when there is no such file, Damaged when
        one is not what was committed.
        """
        known = {f"{table}.parquet": entry for table, entry in self.manifest.tables.items()} | self.manifest.files
        wanted = {path: entry for path, entry in known.items() if path == name or path.startswith(f"{name}/")}
        if not wanted:
            raise StoreError(f"{self.key} has no file or folder {name!r}: it has {sorted(known)}")
        self._disk.map(lambda item: self._provide(*item), wanted.items())
        return self._disk.local(self._at(name))

    def _provide(self, path: str, entry: TableEntry | FileEntry) -> None:
        # Of a table that was copied before, the columns that `table` reads come from the bucket and are verified then.
        is_file = isinstance(entry, FileEntry)
        where = self._disk.where(self._at(path))
        try:
            whole = self._disk.provide(self._at(path), entry.bytes, partial(_as_listed, entry), always_check=is_file)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise Damaged(where, self.key, "it is missing") from error
            raise
        if not whole:
            raise Damaged(where, self.key, "its bytes are not what was committed")

    def check_file(self, path: str) -> None:
        """Raises Damaged when a file of the manifest is not what was committed, StoreError when it can't be read."""
        where, entry = self.where(path), self.manifest.files[path]
        try:
            with unreadable_disk(where):
                different = self._disk.sha256(self._at(path), entry.bytes) != entry.sha256
        except FileNotFoundError as error:
            raise Damaged(where, self.key, "it is missing, or shorter than it was") from error
        if different:
            raise Damaged(where, self.key, "its bytes are not what was committed")

    def check_content(self) -> None:
        """Reads all that was committed, a column at a time. Raises Damaged for the first that differs, StoreError."""
        for name, entry in self.manifest.tables.items():
            for column in entry.columns:
                self.table(name, [column])
        for path in self.manifest.files:
            self.check_file(path)


@contextmanager
def unreadable_disk(path: str) -> Iterator[None]:
    """Turns what the disk refuses into a StoreError: that a file can't be read now doesn't say that it is damaged.

    What pyarrow finds wrong in a file's bytes is an OSError too, without the system's number.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        with explained("read", path):
            raise


def _as_listed(entry: TableEntry | FileEntry, path: Path) -> bool:
    """Whether a file's content is what the manifest says."""
    if isinstance(entry, FileEntry):
        return file_sha256(path) == entry.sha256
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, ValueError):
        return False
    return table_hash(table) == entry.hash


def load(disk: "Disk", key: ArtifactKey) -> Artifact | None:
    """The artifact committed under `key`, or None when there is none.

    A manifest that can't be read, belongs elsewhere, or lists files that aren't there in full is no commit: it is
    logged as a warning with its path and reason, once a process, and its fingerprint can be made anew. A manifest of a
    later format raises StoreError: what a newer version made is not this version's to redo.
    """
    artifact, reason = look(disk, key)
    if reason:
        path = disk.where(f"{key.folder}/{MANIFEST}")
        _tell(path, reason)
    return artifact


@lru_cache(maxsize=1024)
def _tell(path: str, reason: str) -> None:
    """Warns; of the same thing once a process, however often it is looked for."""
    _LOG.warning("%s does not count as committed: %s; it is made again when it is needed", path, reason)


def look(disk: "Disk", key: ArtifactKey) -> tuple[Artifact | None, str]:
    """As `load`, with the reason why a manifest that is there does not count; nothing is logged."""
    path = f"{key.folder}/{MANIFEST}"
    with explained("read", disk.where(path)):
        text = disk.read(path)
    if text is None:
        return None, ""
    try:
        fields = json.loads(text)
        if isinstance(fields, dict) and "seal" in fields and fields["seal"] != seal_of(fields):
            return None, "its content is not what was written"
        version = fields.get("format") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise StoreError(
                f"{disk.where(path)} has format {version}, this version knows {FORMAT}: upgrade m3po-dagster"
            )
        manifest = Manifest.model_validate(fields)
    except (ValueError, ValidationError) as error:
        return None, f"it is not a manifest ({error})"
    if manifest.format >= 2 and not manifest.seal:
        return None, "it has no seal"
    found = ArtifactKey(manifest.asset, manifest.partition, manifest.fingerprint)
    if found != key:
        return None, f"it is the manifest of {found}"
    artifact = Artifact(key, manifest, disk)
    if not disk.keeps_whole and (reason := cut_short(artifact, disk.size)):
        return None, reason
    return artifact, ""


def cut_short(artifact: Artifact, size_of: Callable[[str], int | None]) -> str:
    """The first file that is not there with its committed size; empty when all are.

    `size_of` gives the bytes of a path in the store, None when it is not there.
    """
    sizes = {f"{name}.parquet": entry.bytes for name, entry in artifact.manifest.tables.items()}
    sizes |= {name: entry.bytes for name, entry in artifact.manifest.files.items()}
    for name, size in sizes.items():
        actual = size_of(artifact._at(name))
        if actual != size:
            there = "is missing" if actual is None else f"has {actual} bytes"
            return f"{name} {there}, {size} bytes were committed"
    return ""
