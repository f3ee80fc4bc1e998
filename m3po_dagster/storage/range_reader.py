"""An object of a bucket as a file to read columns from: only what is asked for is fetched."""

import io

from m3po_dagster.storage.s3 import Bucket

_TAIL = 256 << 10
"""Bytes of the end that come with the first look at it: a Parquet file's list of contents, all of a small one."""


class RangeReader(io.RawIOBase):
    """A seekable file over one object whose size is known, which spares a request.

    It waits for a service that restarts, as every request of a `Bucket` does. Reading raises FileNotFoundError where
    the object is gone or shorter than `size`, StoreError where the service can't be asked.
    """

    def __init__(self, bucket: Bucket, key: str, size: int) -> None:
        super().__init__()
        self._bucket, self._key, self._size = bucket, key, size
        self._place, self._tail = 0, b""

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
        tail = max(0, self._size - _TAIL)
        if start >= tail:
            self._tail = self._tail or self._fetched(tail, self._size - tail)
            return self._tail[start - tail : start - tail + length]
        return self._fetched(start, length)

    def _fetched(self, start: int, length: int) -> bytes:
        found = self._bucket.get_range(self._key, start, length)
        if found is None:
            raise FileNotFoundError(f"{self._bucket.where(self._key)} is not there with its {self._size} bytes")
        return found
