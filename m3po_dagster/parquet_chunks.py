"""Where the columns of a Parquet file lie, read off its end.

pyarrow tells it too, but ends the process with SIGABRT at a column whose metadata is damaged: the C++ exception leaves
`RowGroupMetaData.column` uncaught. Reading the column raises it as it should.
"""

import io
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import pyarrow as pa

_MAGIC = b"PAR1"
_END = struct.Struct("<I4s")
_DEEPEST = 16
"""Structs and lists within each other; the format has eight."""
_BITS = 64

# Fields of the format's structs by their Thrift ids.
_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3
_PATH, _PACKED, _DATA_PAGE, _DICTIONARY_PAGE = 3, 7, 9, 11


class Chunk(NamedTuple):
    """A column of a row group, by the first name of its path; its pages lie one after the other."""

    column: str
    first_page: int
    size: int


def column_chunks(file: BinaryIO) -> list[list[Chunk]]:
    """The columns of each row group, as many as the schema has leaves. Raises pa.ArrowInvalid for no Parquet file."""
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _END.size))
        length, magic = _END.unpack(file.read(_END.size))
        if magic != _MAGIC or length > size - _END.size:
            raise ValueError("no list of contents at its end")
        file.seek(size - _END.size - length)
        groups = _struct(iter(file.read(length)), _DEEPEST)[_ROW_GROUPS]
        return [[_chunk(column[_METADATA], size) for column in group[_COLUMNS]] for group in groups]
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise pa.ArrowInvalid(f"no Parquet file, or a damaged one: {error!r}") from error


def _chunk(metadata: dict, size: int) -> Chunk:
    # Some writers name no place of a dictionary; it is the first page then too.
    first, packed = metadata.get(_DICTIONARY_PAGE) or metadata[_DATA_PAGE], metadata[_PACKED]
    if not 0 <= first <= first + packed <= size:
        raise ValueError(f"a column from byte {first} to {first + packed} in a file of {size}")
    return Chunk(metadata[_PATH][0].decode(), first, packed)


def varint(rest: Iterator[int]) -> int:
    """A number of Thrift's compact protocol. Raises ValueError where it doesn't end."""
    value = shift = 0
    for byte in rest:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value
        if shift >= _BITS:
            break
    raise ValueError("a number without end")


def zigzag(rest: Iterator[int]) -> int:
    """A number of Thrift's compact protocol that may be negative."""
    value = varint(rest)
    return value >> 1 ^ -(value & 1)


def _struct(rest: Iterator[int], deepest: int) -> dict:
    """The fields of a struct by their ids."""
    fields, number = {}, 0
    for byte in rest:
        if not byte:
            return fields
        number = number + (byte >> 4) if byte >> 4 else zigzag(rest)
        kind = byte & 0xF
        # A field's kind is its truth; in a list each has a byte.
        fields[number] = kind == 1 if kind in (1, 2) else _value(kind, rest, deepest)
    raise ValueError("a struct without end")


def _value(kind: int, rest: Iterator[int], deepest: int) -> object:
    if kind not in _READ or not deepest:
        raise ValueError(f"no value of kind {kind} may stand here")
    return _READ[kind](rest, deepest - 1)


def _bytes(rest: Iterator[int], count: int) -> bytes:
    found = bytes(byte for _, byte in zip(range(count), rest, strict=False))
    if len(found) < count:
        raise ValueError("it ends too early")
    return found


def _list(rest: Iterator[int], deepest: int) -> list:
    (head,) = _bytes(rest, 1)
    count = varint(rest) if head >> 4 == 0xF else head >> 4
    # Every element takes a byte or more, so a list is never longer than what is left.
    return [_value(head & 0xF, rest, deepest) for _ in range(count)]


_READ: dict[int, Callable[[Iterator[int], int], object]] = {
    **dict.fromkeys((1, 2, 3), lambda rest, deepest: _bytes(rest, 1)),
    **dict.fromkeys((4, 5, 6), lambda rest, deepest: zigzag(rest)),
    7: lambda rest, deepest: _bytes(rest, 8),
    8: lambda rest, deepest: _bytes(rest, varint(rest)),
    **dict.fromkeys((9, 10), _list),
    12: _struct,
}
"""How a value of each kind is read: truths and bytes, whole numbers, a double, bytes, lists and sets, structs."""
