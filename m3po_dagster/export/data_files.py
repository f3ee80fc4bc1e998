"""A shard's data file, written row by row; it exists once a row was written."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from datasets import Features

ROW_GROUP_ROWS = 100
"""Rows of a row group, which a reader of rows with images inside holds at once."""

ROW_GROUP_BYTES = 64 * 2**20
"""A row group is ended early once its images have this many bytes."""


class RowFile(Protocol):
    """What takes rows."""

    def write(self, row: Mapping[str, Any], n_bytes: int) -> None:
        """Takes a row, of which `n_bytes` are an image inside it."""


class JsonLines:
    """Rows as JSON lines in UTF-8."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, None

    def write(self, row: Mapping[str, Any], n_bytes: int) -> None:
        """As RowFile says."""
        self._file = self._file or self._path.open("w", encoding="utf-8", newline="\n")
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """Ends the file, if there is one."""
        if self._file is not None:
            self._file.close()


class Parquet:
    """Rows as Parquet, with the types that `datasets` finds again; a row group is held in memory."""

    def __init__(self, path: Path, features: "Features") -> None:
        self._path, self._schema = path, features.arrow_schema
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def write(self, row: Mapping[str, Any], n_bytes: int) -> None:
        """As RowFile says."""
        self._rows.append(row)
        self._bytes += n_bytes
        if len(self._rows) == ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes what is held and ends the file, if there is one."""
        try:
            if self._rows:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _flush(self) -> None:
        self._writer = self._writer or pq.ParquetWriter(self._path, self._schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


@contextmanager
def row_file(path: Path, features: "Features | None") -> Iterator[RowFile]:
    """A Parquet file where there are `features`, else JSON lines."""
    file = JsonLines(path) if features is None else Parquet(path, features)
    try:
        yield file
    finally:
        file.close()
