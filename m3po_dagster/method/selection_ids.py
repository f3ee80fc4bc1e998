"""Ids of a score table as strings, and the proof that no candidate id is there twice.

Arrow's hash table needs seconds and gigabytes for millions of distinct strings; sorting 64-bit fingerprints needs a
tenth of both, and strings are compared only where two fingerprints are equal.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class ScoreTableError(ValueError):
    """The score table can't be used; the message names the column, the row where there is one, and what to do."""


_SLICE = 1 << 15
_ODD = np.uint64(0x9E3779B97F4A7C15)
# Keeps the first 0 to 8 bytes of a little-endian word.
_FIRST_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)


def ids_as_strings(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Ids as plain strings; integers are written in decimal. Raises ScoreTableError for other types and for nulls."""
    kind = id_type(column.type, name)
    if column.type != kind:
        column = column.cast(kind)
    if column.null_count:
        raise ScoreTableError(f"column {name}, row {first_null(column)}: the id is null; every row needs one")
    return column.cast(pa.string())


def id_type(kind: pa.DataType, name: str) -> pa.DataType:
    """The type of the ids themselves, also inside a dictionary. Raises ScoreTableError for other than these."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(kind):  # what an empty column has when nobody said more
        return pa.string()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise ScoreTableError(f"column {name} is {kind}; ids must be strings or integers")
    return kind


def first_null(column: pa.ChunkedArray | pa.Array) -> int:
    """The row of the first null."""
    return pc.index(column.is_null(), True).as_py()


def first_repeated(ids: pa.ChunkedArray) -> tuple[str, int, int] | None:
    """An id that is there more than once and its first two rows, or None. `ids` are strings without nulls."""
    prints = np.concatenate([np.empty(0, np.uint64), *map(_fingerprints, _slices(ids))])
    ordered = np.sort(prints)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    first_row: dict[str, int] = {}
    for row in np.flatnonzero(np.isin(prints, suspects)) if len(suspects) else ():
        name = ids[int(row)].as_py()
        if name in first_row:
            return name, first_row[name], int(row)
        first_row[name] = int(row)
    return None


def _slices(ids: pa.ChunkedArray) -> Iterator[pa.StringArray]:
    for chunk in ids.chunks:
        for start in range(0, len(chunk), _SLICE):
            yield chunk.slice(start, _SLICE)


def _fingerprints(ids: pa.StringArray) -> np.ndarray:
    """A 64-bit hash of each string's bytes and length; equal strings have equal ones wherever they stand."""
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    first = offsets[0]
    text = b"" if ids.buffers()[2] is None else memoryview(ids.buffers()[2])[first : offsets[-1]]
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    words = np.ndarray((len(text) + 1,), "<u8", bytes(text) + bytes(8), strides=(1,))
    prints = lengths.astype(np.uint64) * _ODD
    rows = np.flatnonzero(lengths)
    done = 0
    while len(rows):
        word = words[starts[rows] + done] & _FIRST_BYTES[np.minimum(lengths[rows] - done, 8)]
        mixed = (prints[rows] ^ word) * _ODD
        prints[rows] = mixed ^ (mixed >> np.uint64(29))
        done += 8
        rows = rows[lengths[rows] > done]
    return prints
