"""A draft: an artifact in the making, part by part, under an exclusive lock."""

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo

from m3po_dagster.storage.artifact import MANIFEST, Artifact, load, look, unreadable_disk
from m3po_dagster.storage.check import check
from m3po_dagster.storage.content import column_hashes, combined_hash, table_hash
from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.filesystem import LOCK, SCRATCH
from m3po_dagster.storage.fingerprint import canonical_json, file_sha256
from m3po_dagster.storage.manifest import (
    ATTEMPT,
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

if TYPE_CHECKING:
    from m3po_dagster.storage.bucket_folder import Disk

ROW_GROUP = 16_384
PARTS = "parts"
_PLAN = "plan.json"
UNFINISHED = (PARTS, SCRATCH, _PLAN)
"""What one attempt leaves to the next."""
_PART = re.compile(rf"({ATTEMPT}/)?{PARTS}/\d{{5}}\.parquet")
_HASH = b"m3po.hash"
_LOG = logging.getLogger(__name__)

Tables = Mapping[str, tuple[pa.Table, TableSchema]]


class Draft:
    """Open it with `ArtifactStore.open`; left without `commit`, it keeps its parts for the next attempt.

    `committed` is the artifact when there is one already: another run was faster. Nothing can be written then.
    """

    def __init__(self, disk: "Disk", key: ArtifactKey) -> None:
        self.key = key
        self.committed: Artifact | None = None
        self._disk, self._folder = disk, key.folder
        self._place = self._folder
        self._lock = None
        self._found: list[str] = []  # paths of whole parts, the latest last
        self._parts: dict[int, str] = {}  # index -> path of the one that counts
        self._plans: dict[str, bytes] = {}  # place -> the plan its parts were cut by
        self._folders: dict[str, Path] = {}
        self._scratch, self._scratch_folder = ExitStack(), None
        self._started = time.monotonic()

    def __enter__(self) -> "Draft":
        self._lock = self._disk.lock(self._folder)
        # Where this attempt writes. In a bucket nobody else does: a writer that slept through the end of its lease can
        # spoil nothing when it wakes up.
        self._place = "/".join(part for part in (self._folder, self._lock.attempt) if part)
        try:
            files = self._disk.files(self._folder)
            self.committed, reason = look(self._disk, self.key)
            if reason:
                # A manifest that doesn't count must not come to count once the files it lists are written anew.
                set_aside(self._disk, self._lock, self.key, whole_artifact(self._disk, self.key, UNFINISHED), reason)
                files = self._disk.files(self._folder)
            if not self.committed:
                self._find_parts(files)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._scratch.__exit__(*error)
        finally:
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
        self._lock.check()

    def _find_parts(self, files: Mapping[str, FileInfo]) -> None:
        """The whole parts that attempts left; of two with one index, the later one counts."""
        found = [path for path in sorted(files, key=lambda path: files[path].mtime_ns) if _PART.fullmatch(path)]
        paths = [f"{self._folder}/{path}" for path in found]
        whole = self._disk.map(self._whole, paths)
        self._found = [path for path, is_whole in zip(paths, whole, strict=True) if is_whole]
        self._parts = {_index_of(path): path for path in self._found}

    def _whole(self, path: str) -> bool:
        """Whether a part reads back with the hash it was written with; one that doesn't is set aside."""
        try:
            with unreadable_disk(self._disk.where(path)):
                table = self._read(path)
            whole = (table.schema.metadata or {}).get(_HASH) == table_hash(table).encode()
            reason = "its content is not what was written"
        except MemoryError:
            raise
        except FileNotFoundError:
            return False  # its writer, alive after all, has tidied up
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            whole, reason = False, str(error)
        if not whole:
            _LOG.warning("%s is damaged (%s): this part is made again", self._disk.where(path), reason)
            set_aside(self._disk, self._lock, self.key, [path.removeprefix(f"{self._folder}/")], reason)
        return whole

    def _read(self, path: str) -> pa.Table:
        text = self._disk.read(path)
        if text is None:
            raise FileNotFoundError(f"{self._disk.where(path)} is not there any more")
        return pq.ParquetFile(pa.BufferReader(text)).read()

    def _plan_of(self, place: str) -> bytes:
        """The plan by which the parts in a place were cut."""
        if place not in self._plans:
            path = f"{place}/{_PLAN}"
            with explained("read", self._disk.where(path)):
                self._plans[place] = self._disk.read(path) or canonical_json(None).encode()
        return self._plans[place]

    def parts(self, plan: object = None) -> list[int]:
        """Indices of the finished parts; each was verified when the draft was opened.

        `plan` (JSON values) says how the work is cut into parts: parts of an attempt that cut it in another way don't
        count, for their indices mean other rows.
        """
        self._writable()
        text = canonical_json(plan).encode()
        before = len(self._parts)
        self._parts = {_index_of(path): path for path in self._found if self._plan_of(_place_of(path)) == text}
        if len(self._parts) < before:
            lost = before - len(self._parts)
            _LOG.warning("%s: %d parts were cut in another way and are made again", self.key, lost)
        if self._plan_of(self._place) != text:
            # Another attempt's stay where they are: should it be alive after all, nobody takes away what it lists.
            for path in [path for path in self._found if _place_of(path) == self._place]:
                self._disk.remove(path)
                self._found.remove(path)
            self._disk.write(f"{self._place}/{_PLAN}", lambda file: file.write(text))
            self._plans[self._place] = text
        return sorted(self._parts)

    def write_part(self, index: int, table: pa.Table, schema: TableSchema | pa.Schema) -> None:
        """Finish one part: it is there as a whole or not at all. Raises SchemaError, StoreError."""
        self._writable()
        if not 0 <= index <= 99_999:
            raise StoreError(f"part {index} of {self.key}: parts are numbered from 0 to 99999")
        if isinstance(schema, pa.Schema):
            schema = TableSchema(self.key.asset, (), schema)
        table = check(table, schema, self.key.asset)
        path = f"{self._place}/{PARTS}/{index:05d}.parquet"
        self._write_table(path, table.replace_schema_metadata({_HASH: table_hash(table)}))
        self._found.append(path)
        self._parts[index] = path

    def read_part(self, index: int) -> pa.Table:
        """The rows of one finished part. Raises StoreError when it can't be read."""
        path = self._parts.get(index)
        if path is None:
            raise StoreError(f"the draft of {self.key} has no finished part {index} to read")
        with explained("read", self._disk.where(path)):
            return self._read(path).replace_schema_metadata(None)

    def read_parts(self) -> pa.Table:
        """One table of all finished parts in order of their index. Raises StoreError when there are none."""
        if not self._parts:
            raise StoreError(f"the draft of {self.key} has no finished parts to read")
        return pa.concat_tables(self._disk.map(self.read_part, sorted(self._parts)))

    def folder(self, name: str = "files") -> Path:
        """An empty local folder whose files `commit` takes in (an adapter's weights); the same one when asked again."""
        self._writable()
        if check_name("folder", name) in (PARTS, SCRATCH, LOCK):
            raise StoreError(f"a folder of {self.key} can't be called {name!r}: choose another name")
        if name not in self._folders:
            self._folders[name] = self._disk.make_empty(f"{self._place}/{name}")
        return self._folders[name]

    def scratch(self, whole: str) -> Path:
        """A local folder that one attempt leaves to the next, for what is no result (checkpoints); gone at `commit`.

        A folder in it that holds a file called `whole` is complete and never changes any more: where attempts share
        no disk, such folders alone are left to the next.
        """
        self._writable()
        if self._scratch_folder is None:
            kept = self._disk.scratch(self._folder, self._lock, whole)
            self._scratch_folder = self._scratch.enter_context(kept)
        return self._scratch_folder

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
            attempt=self._lock.attempt,
            **surroundings(),
        ).sealed()
        self._scratch.close()
        self._lock.check()
        artifact = Artifact(self.key, manifest, self._disk)
        if not self._disk.write_once(f"{self._folder}/{MANIFEST}", manifest.to_json()):
            artifact = self._faster_one()
        self._tidy(artifact.manifest)
        self._release()
        return artifact

    def _faster_one(self) -> Artifact:
        """What another writer committed while this one was at work."""
        artifact = load(self._disk, self.key)
        if artifact is None:
            raise StoreError(f"{self.key} was committed by another writer and removed again: run again")
        _LOG.warning("%s was committed by another writer in the meantime: that one counts", self.key)
        return artifact

    def _commit_table(self, name: str, table: pa.Table) -> TableEntry:
        size = self._write_table(f"{self._place}/{name}.parquet", table)
        columns = {
            field.name: ColumnEntry(type=str(field.type), hash=digest)
            for field, digest in zip(table.schema, column_hashes(table), strict=True)
        }
        whole = combined_hash((column, entry.hash) for column, entry in columns.items())
        return TableEntry(rows=table.num_rows, columns=columns, bytes=size, hash=whole)

    def _commit_folder(self, name: str) -> list[tuple[str, FileEntry]]:
        entries = []
        folder = self._folders[name]
        for relative in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*")):
            file = folder / relative
            if file.is_symlink():
                raise StoreError(f"{file} is a link: an artifact holds its own files")
            if file.is_file():
                self._disk.take_in(f"{self._place}/{name}/{relative}")
                entry = FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))
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
            files = self._disk.files(self._folder)
            self._lock.check()
            self._disk.clear(self._folder, keep=listed(manifest), seen=files)
        except StoreError as error:
            _LOG.warning("%s is committed; its parts stay behind until the next gc: %s", self.key, error)


def part_of(name: str) -> int | None:
    """The index of the part that a file of a draft is; None for another file."""
    return _index_of(name) if _PART.fullmatch(name) else None


def _index_of(part: str) -> int:
    return int(PurePosixPath(part).stem)


def _place_of(part: str) -> str:
    return str(PurePosixPath(part).parent.parent)


def listed(manifest: Manifest) -> set[str]:
    """What belongs into a committed artifact's folder; what else is there are parts, a plan, an earlier attempt's."""
    names = [*manifest.files, *(f"{name}.parquet" for name in manifest.tables)]
    return {MANIFEST, LOCK, *(f"{manifest.attempt}/{name}" if manifest.attempt else name for name in names)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
