"""Columns of a Parquet file in a bucket: its end, then the stretches that hold them, several at a time."""

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from m3po_dagster.parquet_chunks import column_chunks
from m3po_dagster.storage.s3 import Bucket

_TAIL = 256 << 10
"""Bytes of the end that come with the first look at it: a Parquet file's list of contents, all of a small one."""
_GAP, _LONGEST = 64 << 10, 32 << 20
"""Bytes between two stretches that are fetched along rather than asked for around, and of the longest stretch."""
_AT_ONCE = 16


def read_columns(bucket: Bucket, key: str, size: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of the Parquet file of `size` bytes at `key`.

    It waits for a service that restarts, as every request of a `Bucket` does. Raises FileNotFoundError where the object
    is gone or shorter, pa.ArrowException or OSError where it is no such file, StoreError where the service can't be
    asked.
    """
    file = RangeReader(bucket, key, size)
    # In this thread alone: Arrow's own would call Python, which must not happen while a process ends.
    parquet = pq.ParquetFile(file, pre_buffer=False)
    chunks = [chunk for group in column_chunks(file) for chunk in group if chunk.column in columns]
    file.fetch((chunk.first_page, chunk.first_page + chunk.size) for chunk in chunks)
    return parquet.read(columns, use_threads=False)


class RangeReader(io.RawIOBase):
    """A seekable file over one object whose size is known, which spares a request."""

    def __init__(self, bucket: Bucket, key: str, size: int) -> None:
        super().__init__()
        self._bucket, self._key, self._size = bucket, key, size
        self._place = 0
        self._held: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """Any place of it can be read."""
        return True

    def tell(self) -> int:
        """Bytes before the place that is read next."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is fetched."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, as many as asked for unless the object ends before."""
        left = max(0, self._size - self._place)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        start = self._place
        self._place += length
        held = self._found(start, length)
        if held is None:
            tail = max(0, self._size - _TAIL)
            self.fetch([(tail, self._size) if start >= tail else (start, start + length)])
            held = self._found(start, length)
        return held

    def fetch(self, places: Iterable[tuple[int, int]]) -> None:
        """Hold what lies between each beginning and end, as far as it is not held yet."""
        missing = sorted(place for place in places if self._found(place[0], place[1] - place[0]) is None)
        stretches: list[tuple[int, int]] = []
        for start, end in missing:
            if stretches and start - stretches[-1][1] <= _GAP and end - stretches[-1][0] <= _LONGEST:
                stretches[-1] = (stretches[-1][0], max(end, stretches[-1][1]))
            else:
                stretches.append((start, end))
        if len(stretches) == 1:
            self._held += [self._fetched(stretches[0])]
        elif stretches:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                self._held += pool.map(self._fetched, stretches)

    def _found(self, start: int, length: int) -> bytes | None:
        for begin, content in self._held:
            if begin <= start and start + length <= begin + len(content):
                return content[start - begin : start - begin + length]
        return None

    def _fetched(self, stretch: tuple[int, int]) -> tuple[int, bytes]:
        start, end = stretch
        found = self._bucket.get_range(self._key, start, end - start)
        if found is None:
            raise FileNotFoundError(f"{self._bucket.where(self._key)} is not there with its {self._size} bytes")
        return start, found
