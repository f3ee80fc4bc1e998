"""A draft: an artifact in the making, part by part, under an exclusive lock."""

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m3po_dagster.storage.artifact import MANIFEST, Artifact, look, unreadable_disk
from m3po_dagster.storage.check import check
from m3po_dagster.storage.content import column_hashes, combined_hash, table_hash
from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.filesystem import LOCK, LocalFolder
from m3po_dagster.storage.fingerprint import canonical_json, file_sha256
from m3po_dagster.storage.manifest import (
    ColumnEntry,
    FileEntry,
    InputRef,
    Manifest,
    TableEntry,
    content_version,
    surroundings,
)
from m3po_dagster.storage.names import ArtifactKey, check_name
from m3po_dagster.storage.quarantine import set_aside, whole_artifact
from m3po_dagster.storage.tables import TableSchema

ROW_GROUP = 16_384
PARTS = "parts"
SCRATCH = "scratch"
_PLAN = "plan.json"
UNFINISHED = (PARTS, SCRATCH, _PLAN)
"""What one attempt leaves to the next."""
_PART = re.compile(r"(\d{5})\.parquet")
_HASH = b"m3po.hash"
_LOG = logging.getLogger(__name__)

Tables = Mapping[str, tuple[pa.Table, TableSchema]]


class Draft:
    """Open it with `ArtifactStore.open`; left without `commit`, it keeps its parts for the next attempt.

    `committed` is the artifact when there is one already: another run was faster. Nothing can be written then.
    """

    def __init__(self, disk: LocalFolder, key: ArtifactKey) -> None:
        self.key = key
        self.committed: Artifact | None = None
        self._disk, self._folder = disk, key.folder
        self._lock = None
        self._parts: set[int] = set()
        self._folders: set[str] = set()
        self._started = time.monotonic()

    def __enter__(self) -> "Draft":
        self._lock = self._disk.lock(self._folder)
        try:
            self.committed, reason = look(self._disk, self.key)
            if reason:
                # A manifest that doesn't count must not come to count once the files it lists are written anew.
                set_aside(self._disk, self.key, whole_artifact(self._disk, self.key, UNFINISHED), reason)
            if not self.committed:
                self._find_parts()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock:
            self._lock.release()
            self._lock = None

    def _writable(self) -> None:
        if self.committed:
            raise StoreError(f"{self.key} is committed and never written twice: use `committed`")
        if not self._lock:
            raise StoreError(f"the draft of {self.key} is closed: open it again to write")

    def _find_parts(self) -> None:
        for name in self._disk.children(f"{self._folder}/{PARTS}"):
            match = _PART.fullmatch(name)
            if match and self._whole(int(match[1])):
                self._parts.add(int(match[1]))

    def _whole(self, index: int) -> bool:
        """Whether a part reads back with the hash it was written with; one that doesn't is set aside."""
        path = self._part_path(index)
        try:
            with unreadable_disk(self._disk.local(path)):
                table = self._read(index)
            whole = (table.schema.metadata or {}).get(_HASH) == table_hash(table).encode()
            reason = "its content is not what was written"
        except MemoryError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            whole, reason = False, str(error)
        if not whole:
            _LOG.warning("%s is damaged (%s): this part is made again", self._disk.local(path), reason)
            set_aside(self._disk, self.key, [path.removeprefix(f"{self._folder}/")], reason)
        return whole

    def _part_path(self, index: int) -> str:
        return f"{self._folder}/{PARTS}/{index:05d}.parquet"

    def _read(self, index: int) -> pa.Table:
        with self._disk.filesystem.open_input_file(self._part_path(index)) as file:
            return pq.ParquetFile(file).read()

    def parts(self, plan: object = None) -> list[int]:
        """Indices of the finished parts; each was verified when the draft was opened.

        `plan` (JSON values) says how the work is cut into parts: parts of an attempt that cut it in another way are
        removed, for their indices mean other rows.
        """
        self._writable()
        path, text = f"{self._folder}/{_PLAN}", canonical_json(plan).encode()
        recorded = b"null" if self._disk.size(path) is None else self._disk.read(path)
        if recorded != text:
            if self._parts:
                _LOG.warning("%s: %d parts were cut in another way and are made again", self.key, len(self._parts))
            self._disk.remove(f"{self._folder}/{PARTS}")
            self._parts.clear()
            self._disk.write(path, lambda file: file.write(text))
        return sorted(self._parts)

    def write_part(self, index: int, table: pa.Table, schema: TableSchema | pa.Schema) -> None:
        """Finish one part: it is there as a whole or not at all. Raises SchemaError, StoreError."""
        self._writable()
        if not 0 <= index <= 99_999:
            raise StoreError(f"part {index} of {self.key}: parts are numbered from 0 to 99999")
        if isinstance(schema, pa.Schema):
            schema = TableSchema(self.key.asset, (), schema)
        table = check(table, schema, self.key.asset)
        self._write_table(self._part_path(index), table.replace_schema_metadata({_HASH: table_hash(table)}))
        self._parts.add(index)

    def read_part(self, index: int) -> pa.Table:
        """The rows of one finished part. Raises StoreError when it can't be read."""
        with explained("read", self._disk.local(self._part_path(index))):
            return self._read(index).replace_schema_metadata(None)

    def read_parts(self) -> pa.Table:
        """One table of all finished parts in order of their index. Raises StoreError when there are none."""
        if not self._parts:
            raise StoreError(f"the draft of {self.key} has no finished parts to read")
        return pa.concat_tables([self.read_part(index) for index in sorted(self._parts)])

    def folder(self, name: str = "files") -> Path:
        """An empty local folder whose files `commit` takes in (an adapter's weights); the same one when asked again."""
        self._writable()
        if check_name("folder", name) in (PARTS, SCRATCH, LOCK):
            raise StoreError(f"a folder of {self.key} can't be called {name!r}: choose another name")
        if name in self._folders:
            return self._disk.local(f"{self._folder}/{name}")
        path = self._disk.make_empty(f"{self._folder}/{name}")
        self._folders.add(name)
        return path

    def scratch(self) -> Path:
        """A local folder that one attempt leaves to the next, for what is no result (checkpoints); gone at `commit`."""
        self._writable()
        path = self._disk.local(f"{self._folder}/{SCRATCH}")
        with explained("make the folder", path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def commit(
        self,
        tables: Tables | None = None,
        *,
        code_version: str,
        settings: Any = None,
        inputs: Mapping[str, InputRef | Mapping[str, Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Write the tables, take in the folders' files, then the manifest: from then on the artifact is there.

        In `metadata` numbers that are not finite become null, for JSON has none. Raises SchemaError, StoreError;
        nothing is committed then.
        """
        self._writable()
        inputs = {name: InputRef.model_validate(value) for name, value in (inputs or {}).items()}
        extra = json.loads(canonical_json(_finite(metadata or {})))
        checked = {
            check_name("table", name): check(table, schema, self.key.asset)
            for name, (table, schema) in (tables or {}).items()
        }
        table_entries = {name: self._commit_table(name, table) for name, table in checked.items()}
        counted = {name for name, (_, schema) in (tables or {}).items() if schema.counts}
        file_entries = {path: entry for name in sorted(self._folders) for path, entry in self._commit_folder(name)}
        if not table_entries and not file_entries:
            raise StoreError(f"{self.key} has nothing to commit: give tables or put files into a folder")
        manifest = Manifest(
            asset=self.key.asset,
            partition=self.key.partition,
            fingerprint=self.key.fingerprint,
            data_version=content_version(
                {name: entry.hash for name, entry in table_entries.items() if name in counted},
                {path: entry.sha256 for path, entry in file_entries.items()},
            ),
            code_version=code_version,
            settings=json.loads(canonical_json(settings)),
            inputs=inputs,
            tables=table_entries,
            files=file_entries,
            seconds=round(time.monotonic() - self._started, 3),
            metadata=extra,
            **surroundings(),
        ).sealed()
        self._disk.write(f"{self._folder}/{MANIFEST}", lambda file: file.write(manifest.to_json()))
        self._tidy(manifest)
        self._release()
        return Artifact(self.key, manifest, self._disk)

    def _commit_table(self, name: str, table: pa.Table) -> TableEntry:
        size = self._write_table(f"{self._folder}/{name}.parquet", table)
        columns = {
            field.name: ColumnEntry(type=str(field.type), hash=digest)
            for field, digest in zip(table.schema, column_hashes(table), strict=True)
        }
        whole = combined_hash((column, entry.hash) for column, entry in columns.items())
        return TableEntry(rows=table.num_rows, columns=columns, bytes=size, hash=whole)

    def _commit_folder(self, name: str) -> list[tuple[str, FileEntry]]:
        entries = []
        for relative, info in sorted(self._disk.files(f"{self._folder}/{name}").items()):
            path = f"{self._folder}/{name}/{relative}"
            if self._disk.local(path).is_symlink():
                raise StoreError(f"{self._disk.local(path)} is a link: an artifact holds its own files")
            self._disk.sync(path)
            entry = FileEntry(bytes=info.size, sha256=file_sha256(self._disk.local(path)))
            entries.append((f"{name}/{relative}", entry))
        return entries

    def _write_table(self, path: str, table: pa.Table) -> int:
        return self._disk.write(
            path,
            lambda file: pq.write_table(table, file, compression="zstd", compression_level=3, row_group_size=ROW_GROUP),
        )

    def _tidy(self, manifest: Manifest) -> None:
        """Remove what the manifest doesn't list; the artifact is committed whether this succeeds or not."""
        try:
            for name in leftovers(self._disk, self.key, manifest):
                self._disk.remove(f"{self._folder}/{name}")
            for name in (PARTS, SCRATCH):
                self._disk.remove(f"{self._folder}/{name}")
        except StoreError as error:
            _LOG.warning("%s is committed; its parts stay behind until the next gc: %s", self.key, error)


def leftovers(disk: LocalFolder, key: ArtifactKey, manifest: Manifest) -> list[str]:
    """Files in a committed artifact's folder that its manifest doesn't list: parts, a plan, an earlier attempt's."""
    listed = {MANIFEST, LOCK, *manifest.files, *(f"{name}.parquet" for name in manifest.tables)}
    return [name for name in disk.files(key.folder) if name not in listed]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
