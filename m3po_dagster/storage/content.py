"""The content hash of a table: what it says, not how Arrow or Parquet happen to lay it out."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from m3po_dagster.storage.fingerprint import canonical_json

# Rows hashed at a time: fixed by row number, so that chunks and row groups leave no trace.
_BLOCK = 1 << 16


def table_hash(table: pa.Table) -> str:
    """sha256 (hex) of a table's column names, types, and values in row order.

    Independent of chunks, slices, dictionary encoding, offset width (string or large_string), field metadata and
    nullability; null and empty differ, every NaN is the same NaN, -0.0 is not 0.0. Raises TypeError for column
    types that no table of the graph has (maps, unions, views of lists, extensions).
    """
    return combined_hash(zip(table.column_names, column_hashes(table), strict=True))


def column_hashes(table: pa.Table) -> list[str]:
    """sha256 (hex) of each column's type, length and values, the same way. Raises TypeError as `table_hash`."""
    hashes = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = _kind(column.type, name)
        hasher = hashlib.sha256(canonical_json([kind, table.num_rows]).encode())
        for start in range(0, table.num_rows, _BLOCK):
            _update(hasher, _one_array(column.slice(start, _BLOCK)))
        hashes.append(hasher.hexdigest())
    return hashes


def combined_hash(columns: Iterable[tuple[str, str]]) -> str:
    """The table's hash from its columns' names and hashes, in the table's order."""
    return hashlib.sha256(canonical_json([[name, digest] for name, digest in columns]).encode()).hexdigest()


def _kind(kind: pa.DataType, column: str) -> Any:
    """A type's logical name as JSON: widths of offsets, dictionaries and names of list items don't count."""
    if types.is_dictionary(kind):
        return _kind(kind.value_type, column)
    if _is_text(kind):
        return "string"
    if _is_bytes(kind):
        return "binary"
    if types.is_list(kind) or types.is_large_list(kind):
        return ["list", _kind(kind.value_type, column)]
    if types.is_fixed_size_list(kind):
        return ["list", kind.list_size, _kind(kind.value_type, column)]
    if types.is_struct(kind):
        return ["struct", [[field.name, _kind(field.type, column)] for field in kind]]
    if types.is_null(kind) or types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind):
        return str(kind)
    raise TypeError(f"column {column!r} has the type {kind}, which has no content hash")


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if types.is_dictionary(column.type):
        return pa.concat_arrays([chunk.dictionary_decode() for chunk in column.chunks])
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _update(hasher: Any, array: pa.Array) -> None:
    """Feed one array: validity, then lengths where they vary, then values, with nothing under a null."""
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    valid = None
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        hasher.update(b"\1" + np.packbits(valid).tobytes())
    else:
        hasher.update(b"\0")
    kind = array.type
    if len(array) == 0 or types.is_null(kind):
        return
    if types.is_struct(kind):
        for child in array.flatten():
            _update(hasher, child)
    elif types.is_nested(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        values = array.flatten()
        hasher.update(lengths.to_numpy(zero_copy_only=False).astype("<i8"))
        hasher.update(len(values).to_bytes(8, "little"))
        _update(hasher, values)
    elif _is_text(kind) or _is_bytes(kind):
        _update_text(hasher, array)
    elif types.is_boolean(kind):
        hasher.update(pc.fill_null(array, False).to_numpy(zero_copy_only=False).astype(np.uint8))
    else:
        hasher.update(_fixed_width(array, valid))


def _update_text(hasher: Any, array: pa.Array) -> None:
    if types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    elif types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    wide = types.is_large_string(array.type) or types.is_large_binary(array.type)
    if array.null_count:
        # A null may cover stray bytes in the buffer; an empty value covers none.
        array = pc.fill_null(array, pa.scalar("" if _is_text(array.type) else b"", array.type))
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    hasher.update(np.diff(offsets).astype("<i8"))
    if data is not None:
        hasher.update(memoryview(data)[offsets[0] : offsets[-1]])


def _fixed_width(array: pa.Array, valid: np.ndarray | None) -> np.ndarray:
    """The values' bytes, shape (rows, width), zeros under nulls and one bit pattern for NaN."""
    width = array.type.bit_width // 8
    start = array.offset * width
    raw = np.frombuffer(array.buffers()[1], np.uint8)[start : start + len(array) * width].reshape(len(array), width)
    if types.is_floating(array.type):
        values = raw.view(f"<f{width}")
        not_a_number = np.isnan(values)
        if not_a_number.any():
            raw = np.where(not_a_number, np.array(np.nan, values.dtype), values).view(np.uint8)
    if valid is not None:
        raw = np.where(valid[:, None], raw, np.uint8(0))
    return np.ascontiguousarray(raw)
