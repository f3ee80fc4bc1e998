"""A draft: an artifact in the making, part by part, under an exclusive lock."""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m3po_dagster.storage.artifact import MANIFEST, Artifact, load
from m3po_dagster.storage.check import check
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.errors import AlreadyCommitted, StoreError
from m3po_dagster.storage.filesystem import LocalFolder
from m3po_dagster.storage.fingerprint import canonical_json, file_sha256, fingerprint
from m3po_dagster.storage.manifest import FileEntry, InputRef, Manifest, TableEntry, content_version, surroundings
from m3po_dagster.storage.names import ArtifactKey, check_name
from m3po_dagster.storage.tables import TableSchema

ROW_GROUP = 16_384
PARTS = "parts"
_PLAN = "plan.json"
_PART = re.compile(r"(\d{5})\.parquet")
_HASHES = b"m3po.hashes"
_LOG = logging.getLogger(__name__)

Tables = Mapping[str, tuple[pa.Table, TableSchema]]


class Draft:
    """Open it with `ArtifactStore.open`; left without `commit`, it keeps its parts for the next attempt."""

    def __init__(self, disk: LocalFolder, key: ArtifactKey, plan: object = None) -> None:
        self.key = key
        self._disk, self._folder, self._plan = disk, key.folder, canonical_json(plan)
        self._lock = None
        self._parts: set[int] = set()
        self._folders: set[str] = set()
        self._started = time.monotonic()

    def __enter__(self) -> "Draft":
        self._lock = self._disk.lock(self._folder)
        try:
            committed = load(self._disk, self.key)
            if committed:
                raise AlreadyCommitted(committed)
            self._begin()
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

    def _begin(self) -> None:
        """Find the parts to go on from: those of an earlier attempt that cut the work the same way."""
        plan = f"{self._folder}/{_PLAN}"
        if self._disk.size(plan) is None or self._disk.read(plan).decode(errors="replace") != self._plan:
            self._disk.remove(f"{self._folder}/{PARTS}")
            self._disk.write(plan, lambda file: file.write(self._plan.encode()))
        for name in self._disk.children(f"{self._folder}/{PARTS}"):
            match = _PART.fullmatch(name)
            if match and self._whole(int(match[1])):
                self._parts.add(int(match[1]))

    def _whole(self, index: int) -> bool:
        """Whether every table of a part reads back with the hash it was written with; what doesn't is removed."""
        try:
            data = self._read(index, "data")
            hashes = json.loads(data.schema.metadata[_HASHES])
            whole = all(table_hash(self._read(index, name)) == expected for name, expected in hashes.items())
            reason = "its content is not what was written"
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            whole, reason = False, str(error)
        if not whole:
            path = self._part_path(index, "data")
            _LOG.warning("%s is damaged (%s): this part is made again", self._disk.local(path), reason)
            self._disk.remove(path)
        return whole

    def _part_path(self, index: int, name: str) -> str:
        ending = "" if name == "data" else f".{name}"
        return f"{self._folder}/{PARTS}/{index:05d}{ending}.parquet"

    def _read(self, index: int, name: str) -> pa.Table:
        with self._disk.filesystem.open_input_file(self._part_path(index, name)) as file:
            return pq.ParquetFile(file).read()

    def _writable(self) -> None:
        if not self._lock:
            raise StoreError(f"the draft of {self.key} is closed: open it again to write")

    def parts(self) -> list[int]:
        """Indices of the finished parts, verified when the draft was opened."""
        return sorted(self._parts)

    def write_part(self, index: int, table: pa.Table, schema: TableSchema, extra: Tables | None = None) -> None:
        """Finish one part: its table and, where the work gives more than one, `extra` tables by name.

        It is there as a whole or not at all. Raises SchemaError, StoreError.
        """
        self._writable()
        if not 0 <= index <= 99_999:
            raise StoreError(f"part {index} of {self.key}: parts are numbered from 0 to 99999")
        tables = {"data": (table, schema), **(extra or {})}
        checked = {check_name("table", n): check(t, s, self.key.asset) for n, (t, s) in tables.items()}
        hashes = json.dumps({name: table_hash(table) for name, table in checked.items()}).encode()
        # The data table goes last: a part counts from the moment that its data file has its name.
        for name in [*(name for name in checked if name != "data"), "data"]:
            marked = checked[name].replace_schema_metadata({_HASHES: hashes})
            self._write_table(self._part_path(index, name), marked)
        self._parts.add(index)

    def read_parts(self, schema: TableSchema, name: str = "data") -> pa.Table:
        """One table of all finished parts in order of their index; an empty one when there are no parts."""
        tables = [self._read(index, name).replace_schema_metadata(None) for index in self.parts()]
        return check(pa.concat_tables([schema.schema.empty_table(), *tables]), schema, self.key.asset)

    def folder(self, name: str = "files") -> Path:
        """An empty local folder whose files `commit` takes in (an adapter's weights); the same one when asked again."""
        self._writable()
        if check_name("folder", name) == PARTS:
            raise StoreError(f"a folder of {self.key} can't be called {PARTS!r}: choose another name")
        if name in self._folders:
            return self._disk.local(f"{self._folder}/{name}")
        path = self._disk.make_empty(f"{self._folder}/{name}")
        self._folders.add(name)
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

        `code_version`, `settings` and the inputs' data versions must be those of the fingerprint, so that the
        manifest says what the fingerprint stands for. Raises SchemaError, StoreError; nothing is committed then.
        """
        self._writable()
        inputs = {name: InputRef.model_validate(value) for name, value in (inputs or {}).items()}
        versions = {name: ref.data_version for name, ref in inputs.items()}
        self._explains(code_version, settings, versions)
        extra = json.loads(canonical_json(metadata or {}))
        checked = {
            check_name("table", name): check(table, schema, self.key.asset)
            for name, (table, schema) in (tables or {}).items()
        }
        table_entries = {name: self._commit_table(name, table) for name, table in checked.items()}
        file_entries = {path: entry for name in sorted(self._folders) for path, entry in self._commit_folder(name)}
        if not table_entries and not file_entries:
            raise StoreError(f"{self.key} has nothing to commit: give tables or put files into a folder")
        manifest = Manifest(
            asset=self.key.asset,
            partition=self.key.partition,
            fingerprint=self.key.fingerprint,
            data_version=content_version(table_entries, file_entries),
            code_version=code_version,
            settings=json.loads(canonical_json(settings)),
            inputs=inputs,
            tables=table_entries,
            files=file_entries,
            seconds=round(time.monotonic() - self._started, 3),
            metadata=extra,
            **surroundings(),
        )
        self._disk.write(f"{self._folder}/{MANIFEST}", lambda file: file.write(manifest.to_json()))
        self._tidy(manifest)
        self._release()
        return Artifact(self.key, manifest, self._disk)

    def _explains(self, code_version: str, settings: Any, versions: dict[str, str]) -> None:
        expected = fingerprint(self.key.asset, self.key.partition, code_version, settings, versions)
        if expected != self.key.fingerprint:
            raise StoreError(
                f"{self.key}: code version, settings and inputs give the fingerprint {expected[:12]}: "
                "commit with those the fingerprint was made from (what does not matter for it goes into metadata)"
            )

    def _commit_table(self, name: str, table: pa.Table) -> TableEntry:
        size = self._write_table(f"{self._folder}/{name}.parquet", table)
        columns = {field.name: str(field.type) for field in table.schema}
        return TableEntry(rows=table.num_rows, columns=columns, bytes=size, hash=table_hash(table))

    def _commit_folder(self, name: str) -> list[tuple[str, FileEntry]]:
        entries = []
        for relative, info in sorted(self._disk.files(f"{self._folder}/{name}").items()):
            path = f"{self._folder}/{name}/{relative}"
            if self._disk.local(path).is_symlink():
                raise StoreError(f"{self._disk.local(path)} is a link: an artifact holds its own files")
            self._disk.sync(path)
            entries.append(
                (f"{name}/{relative}", FileEntry(bytes=info.size, sha256=file_sha256(self._disk.local(path))))
            )
        return entries

    def _write_table(self, path: str, table: pa.Table) -> int:
        return self._disk.write(
            path,
            lambda file: pq.write_table(
                table,
                file,
                compression="zstd",
                compression_level=3,
                row_group_size=ROW_GROUP,
                write_page_checksum=True,
            ),
        )

    def _tidy(self, manifest: Manifest) -> None:
        """Remove what the manifest doesn't list; the artifact is committed whether this succeeds or not."""
        try:
            for name in leftovers(self._disk, self.key, manifest):
                self._disk.remove(f"{self._folder}/{name}")
            self._disk.remove(f"{self._folder}/{PARTS}")
        except StoreError as error:
            _LOG.warning("%s is committed; its parts stay behind until the next gc: %s", self.key, error)


def leftovers(disk: LocalFolder, key: ArtifactKey, manifest: Manifest) -> list[str]:
    """Files in a committed artifact's folder that its manifest doesn't list: parts, a plan, an earlier attempt's."""
    listed = {MANIFEST, "lock", *manifest.files, *(f"{name}.parquet" for name in manifest.tables)}
    return [name for name in disk.files(key.folder) if name not in listed]
