"""How large a value of a Parquet column can be, read off its first page's header: no library tells it.

A dictionary holds each distinct value once. A file of a kilobyte can hold a value of megabytes and name it a million
times, and its figures are right: averages of them bound nothing.
"""

from collections.abc import Iterable
from typing import BinaryIO

from m3po_dagster.parquet_chunks import Chunk, zigzag

_DICTIONARY_PAGE = 2
_I32 = 0x15
"""Thrift's compact protocol: the next field, an i32. A page's header begins with three: its kind, its bytes unpacked
and packed."""
_HEADER_BYTES = 16


def largest_dictionary(file: BinaryIO, group: Iterable[Chunk], columns: set[str]) -> int | None:
    """Bytes of the largest dictionary, unpacked, of these columns in a row group; 0 without one.

    None where a header isn't as every writer makes it: nothing is known of that column's values.
    """
    largest = 0
    for chunk in group:
        if chunk.column not in columns:
            continue
        file.seek(chunk.first_page)
        try:
            kind, size = _first_fields(file.read(_HEADER_BYTES))
        except ValueError:
            return None
        largest = max(largest, size if kind == _DICTIONARY_PAGE else 0)
    return largest


def _first_fields(header: bytes) -> tuple[int, int]:
    """A page's kind and its bytes unpacked."""
    values, rest = [], iter(header)
    for _ in range(2):
        if next(rest, None) != _I32:
            raise ValueError("no page header")
        values.append(zigzag(rest))
    return values[0], values[1]
