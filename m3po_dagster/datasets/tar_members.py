"""The members of a tar file that nobody vouches for: headers are parsed, nothing is extracted, no link followed."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from m3po_dagster.datasets.record import DatasetError

MAX_HEADER_BYTES = 64 << 10
"""Largest extended header, which holds a name and attributes. tarfile would read one of any length, and its patterns
take quadratic time over it."""

_END_BYTES = 1 << 20


def tar_members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar file in order, of any type; memory holds one header.

    Raises DatasetError naming file and byte when it is no tar file, a header is broken, the file is cut short (an end
    mark is missing then) or bytes follow the end mark.
    """
    offset = 0
    try:
        with tarfile.open(fileobj=_HeadersOnly(file), mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A negative size would lead back to a member that was read.
                if member.size < 0 or tar.offset <= offset:
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                offset = tar.offset
                tar.members.clear()
                yield member
            offset = tar.offset
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise DatasetError(f"{path}, byte {offset}: broken or cut short, or no tar file: {error}") from None
    _check_end(path, file, offset)


def member_bytes(path: Path, file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """A regular member's content. Raises DatasetError where the file ends before."""
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise DatasetError(
            f"{path}, byte {member.offset_data + len(data)}: cut short within {member.name[:200]!r}, "
            f"{len(data):,} of {member.size:,} bytes are there"
        )
    return data


def _check_end(path: Path, file: BinaryIO, offset: int) -> None:
    """tarfile ends as quietly at a broken header, or where the file ends, as at the end mark."""
    file.seek(offset)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise DatasetError(f"{path}, byte {offset}: cut short, the end mark is missing")
    if any(mark):
        raise DatasetError(f"{path}, byte {offset}: a header is broken")
    while rest := file.read(_END_BYTES):
        if any(rest):
            raise DatasetError(
                f"{path}: more follows the end mark at byte {offset}; join tar files with tar --concatenate"
            )


class _HeadersOnly:
    """A file as tarfile sees it: no read of it is longer than a header may be."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes, at most {MAX_HEADER_BYTES:,} are read")
        return self._file.read(size)
