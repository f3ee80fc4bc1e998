"""A committed artifact: its manifest, its tables, its files. Immutable."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from m3po_dagster.storage.content import column_hashes
from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.filesystem import LocalFolder
from m3po_dagster.storage.manifest import FORMAT, Manifest
from m3po_dagster.storage.names import ArtifactKey

MANIFEST = "manifest.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """What `ArtifactStore.find` and `Draft.commit` give."""

    key: ArtifactKey
    manifest: Manifest
    _disk: LocalFolder = field(repr=False)

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
        """Local folder that holds it."""
        return self._disk.local(self.key.folder)

    def table(self, name: str = "data", columns: list[str] | None = None) -> pa.Table:
        """A table, or some of its columns, verified against the manifest's content hashes.

        Raises StoreError when there is no such table or column, or when the file is damaged.
        """
        entry = self.manifest.tables.get(name)
        if entry is None:
            raise StoreError(f"{self.key} has no table {name!r}: it has {sorted(self.manifest.tables)}")
        wanted = list(entry.columns) if columns is None else columns
        unknown = [column for column in wanted if column not in entry.columns]
        if unknown:
            raise StoreError(f"{self.key}: table {name!r} has no columns {unknown}: it has {list(entry.columns)}")
        path = f"{self.key.folder}/{name}.parquet"
        try:
            with self._disk.filesystem.open_input_file(path) as file:
                table = pq.ParquetFile(file).read(wanted).select(wanted)
            different = [
                column
                for column, digest in zip(wanted, column_hashes(table), strict=True)
                if digest != entry.columns[column].hash
            ]
            reason = f"columns {different} are not what was committed" if different else ""
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
        if reason:
            where = self._disk.local(path)
            raise StoreError(f"{where} can't be read or is damaged ({reason}): remove its folder, then run again")
        return table

    def path(self, name: str) -> Path:
        """Local path of a file, a folder of files or a table's Parquet file. Raises StoreError when there is none."""
        known = set(self.manifest.files) | {f"{table}.parquet" for table in self.manifest.tables}
        if name not in known and not any(path.startswith(f"{name}/") for path in self.manifest.files):
            raise StoreError(f"{self.key} has no file or folder {name!r}: it has {sorted(known)}")
        return self._disk.local(f"{self.key.folder}/{name}")


def load(disk: LocalFolder, key: ArtifactKey) -> Artifact | None:
    """The artifact committed under `key`, or None when there is none.

    A manifest that can't be read, belongs elsewhere, or lists files that aren't there in full is no commit: it is
    logged as a warning with its path and reason, and its fingerprint can be made anew. A manifest of a later format
    raises StoreError: what a newer version made is not this version's to redo.
    """
    path = f"{key.folder}/{MANIFEST}"
    if disk.size(path) is None:
        return None
    with explained("read", disk.local(path)):
        text = disk.read(path)
    try:
        fields = json.loads(text)
        version = fields.get("format") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise StoreError(
                f"{disk.local(path)} has format {version}, this version knows {FORMAT}: upgrade m3po-dagster"
            )
        manifest = Manifest.model_validate(fields)
    except (ValueError, ValidationError) as error:
        return _damaged(disk, path, f"it is not a manifest ({error})")
    found = ArtifactKey(manifest.asset, manifest.partition, manifest.fingerprint)
    if found != key:
        return _damaged(disk, path, f"it is the manifest of {found}")
    sizes = {f"{name}.parquet": entry.bytes for name, entry in manifest.tables.items()}
    sizes |= {name: entry.bytes for name, entry in manifest.files.items()}
    for name, size in sizes.items():
        actual = disk.size(f"{key.folder}/{name}")
        if actual != size:
            there = "is missing" if actual is None else f"has {actual} bytes"
            return _damaged(disk, path, f"{name} {there}, {size} bytes were committed")
    return Artifact(key, manifest, disk)


def _damaged(disk: LocalFolder, path: str, reason: str) -> None:
    _LOG.warning("%s does not count as committed: %s; it is made again when it is needed", disk.local(path), reason)
