"""Batches of Parquet and Arrow files, a part of a row group at a time, with errors that name the file."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m3po_dagster.datasets.parquet_pages import largest_dictionary
from m3po_dagster.datasets.record import DatasetError
from m3po_dagster.parquet_chunks import column_chunks

BATCH_BYTES = 8 << 20
"""Bytes that a batch of Parquet rows is meant to have: images make rows of any size."""

MAX_REPEATED_BYTES = 256 << 20
"""Most bytes of a batch all of whose rows name the largest value of a dictionary, which stands in the file once."""

_MAX_BATCH_ROWS = 1024
_READ_BYTES = 1 << 20
_ARROW_FILE_MAGIC = b"ARROW1"

Batches = Iterator[tuple[Path, pa.RecordBatch]]


@dataclass(frozen=True)
class Column:
    """A column to read: a test of its type and, for the error, what is expected; not every file has an optional one."""

    name: str
    fits: Callable[[pa.DataType], bool]
    expected: str
    optional: bool = False


def batches_of(files: Sequence[Path], columns: Sequence[Column]) -> Batches:
    """The files' batches with these columns alone. Parquet by its suffix, else Arrow, as file or as stream.

    Raises DatasetError naming the file, for one that is broken or a column that is missing or of another type.
    """
    for path in files:
        yield from named(path, _READ[path.suffix.lower() == ".parquet"](path, columns))


def named(path: Path, batches: Iterable[pa.RecordBatch]) -> Batches:
    """The batches with their path; what pyarrow raises for a broken file becomes DatasetError, naming path and row."""
    rows = 0
    try:
        for batch in batches:
            yield path, batch
            rows += batch.num_rows
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path}, row {rows}: can't be read: {str(error)[:500]}") from None


def columns_there(path: Path, schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
    """Names of the columns to read. Raises DatasetError for one that is missing, there twice or of another type."""
    names = []
    for column in columns:
        found = schema.get_all_field_indices(column.name)
        if not found and column.optional:
            continue
        if not found:
            there = ", ".join(map(repr, schema.names))[:500]
            raise DatasetError(f"{path}: no column {column.name!r}; its columns are {there}")
        if len(found) > 1:
            raise DatasetError(f"{path}: {len(found)} columns are named {column.name!r}")
        if not column.fits(kind := schema.field(found[0]).type):
            raise DatasetError(f"{path}: column {column.name!r} is {str(kind)[:200]}, expected {column.expected}")
        names.append(column.name)
    return names


def is_text(kind: pa.DataType) -> bool:
    """Strings of any layout, or nothing but nulls."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)


def is_id(kind: pa.DataType) -> bool:
    """Strings or whole numbers."""
    return is_text(kind) or pa.types.is_integer(kind)


def is_list(kind: pa.DataType) -> bool:
    """Lists of any layout, or nothing but nulls."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)


def is_image(kind: pa.DataType) -> bool:
    """An image feature ({bytes, path}), bytes, or a path."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return (
            set(fields) == {"bytes", "path"}
            and kind.num_fields == 2
            and (is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"]))
            and is_text(fields["path"])
        )
    return is_binary(kind) or is_text(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Bytes of any layout."""
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _parquet(path: Path, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    # Without the buffer, and with pre-buffering, a row group's columns are held whole: a gigabyte of images.
    options = {"pre_buffer": False, "buffer_size": _READ_BYTES, "page_checksum_verification": True}
    with pq.ParquetFile(path, **options) as file, path.open("rb") as pages:
        names = columns_there(path, file.schema_arrow, columns)
        for number, chunks in zip(range(file.num_row_groups), column_chunks(pages), strict=True):
            group = file.metadata.row_group(number)
            rows = BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
            repeated = largest_dictionary(pages, chunks, set(names))
            most = 1 if repeated is None else MAX_REPEATED_BYTES // max(1, repeated)
            rows = max(1, min(rows, most, _MAX_BATCH_ROWS))
            yield from file.iter_batches(rows, [number], names, use_threads=False)


def _arrow(path: Path, columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(os.fspath(path)) as file:
        is_file = file.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        file.seek(0)
        open_reader = pa.ipc.open_file if is_file else pa.ipc.open_stream
        schema = open_reader(file).schema
        names = columns_there(path, schema, columns)
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
        with open_reader(file, options=options) as reader:
            if is_file:
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from reader


_READ = {True: _parquet, False: _arrow}
