"""Reads a JSON array of records one by one: memory holds one chunk of the file and one record."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from m3po_dagster.datasets.json_text import decode, said_by, skip_space
from m3po_dagster.datasets.record import DatasetError

CHUNK_BYTES = 1 << 20
_LONGEST_REST = 2


def read_array(path: Path, max_record_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[object]:
    """The values of the JSON array that the file holds, in order, as json_text.decode gives them.

    Raises DatasetError when the file is missing, unreadable, not UTF-8, not an array, broken or cut short, or when a
    record is longer than `max_record_bytes`, which a missing quote or bracket makes it; the message names the file, the
    record and the character, or the byte that is not UTF-8. Memory holds no more than that and a chunk.
    """
    try:
        with path.open("rb") as file:
            yield from _Array(path, file, max_record_bytes, chunk_bytes)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such dataset file; correct the source's path") from None
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error}") from None


class _Array:
    """A window over the file's text; a value is taken once what follows it is in the window too."""

    def __init__(self, path: Path, file: BinaryIO, max_record_bytes: int, chunk_bytes: int) -> None:
        self.path, self.file, self.max_record_bytes, self.chunk = path, file, max_record_bytes, chunk_bytes
        self.window, self.at, self.before, self.ended = "", 0, 0, False
        self.utf8, self.bytes_read, self.not_utf8 = codecs.getincrementaldecoder("utf-8")(), 0, None
        self.record = 0

    def __iter__(self) -> Iterator[object]:
        opening = self._next_character()
        if opening == "\ufeff":  # a byte order mark
            self.at += 1
            opening = self._next_character()
        if opening != "[":
            found = "an empty file" if opening == "" else f"a file that starts with {opening!r}"
            self._fail(f"expected a JSON array of records, found {found}")
        self.at += 1
        if self._next_character() == "]":
            self.at += 1
        else:
            yield from self._values()
        if rest := self._next_character():
            self._fail(f"the array has ended, but {rest!r} follows")

    def _values(self) -> Iterator[object]:
        while True:
            yield self._value()
            separator = self._next_character()
            if separator not in (",", "]"):
                found = repr(separator) if separator else "the end of the file"
                self._fail(f"expected ',' or ']' after record {self.record}, found {found}")
            self.at += 1
            self.record += 1
            if separator == "]":
                return

    def _value(self) -> object:
        self._next_character()
        while True:
            try:
                value, end = decode(self.window, self.at)
            except json.JSONDecodeError as error:
                # A value that is merely cut off fails at the window's end, or at the start of a string without an end.
                cut = error.pos > len(self.window) - 16 or error.msg.startswith("Unterminated string")
                self._refuse_long(len(self.window))
                if not (cut and self._more()):
                    what = f"record {self.record} is broken or cut short: {said_by(error)}"
                    self._fail(f"{what}; mend it, or fetch the file again", self.before + error.pos)
                continue
            # A number may go on: of "1.5e+3" cut after the plus, "1.5" is a value and two characters are left.
            if end + _LONGEST_REST < len(self.window) or not self._more():
                self._refuse_long(end)
                self.at = end
                return value

    def _refuse_long(self, end: int) -> None:
        characters, limit = end - self.at, self.max_record_bytes
        # At most four bytes a character: most records need not be encoded to be known short enough.
        if 4 * characters <= limit:
            return
        if characters > limit or len(self.window[self.at : end].encode("utf-8")) > limit:
            self._fail(
                f"record {self.record} is longer than {limit:,} bytes, the most that max_record_megabytes allows: "
                "close the quote or bracket that it misses, or raise max_record_megabytes where none is missing"
            )

    def _next_character(self) -> str:
        """Moves to the next character that is not white space; '' at the end of the file."""
        while True:
            self.at = skip_space(self.window, self.at)
            if self.at < len(self.window):
                return self.window[self.at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Drops what is done and doubles what is left: a long record is parsed a logarithmic number of times."""
        if self.ended:
            return False
        if self.not_utf8:
            byte, reason = self.not_utf8
            raise DatasetError(
                f"{self.path}, byte {byte}: record {self.record} is not UTF-8: {reason}; save the file as UTF-8"
            )
        held = len(self.window) - self.at
        data = self.file.read(max(self.chunk, min(held, self.max_record_bytes - held)))
        new = self._text(data)
        if not data and not self.not_utf8:
            self.ended = True
            return False
        self.before += self.at
        self.window, self.at = self.window[self.at :] + new, 0
        return True

    def _text(self, data: bytes) -> str:
        pending = len(self.utf8.getstate()[0])
        try:
            text = self.utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            # The records before it are given first.
            self.not_utf8 = self.bytes_read - pending + error.start, error.reason
            return error.object[: error.start].decode("utf-8")
        self.bytes_read += len(data)
        return text

    def _fail(self, message: str, position: int | None = None) -> NoReturn:
        position = self.before + self.at if position is None else position
        raise DatasetError(f"{self.path}, character {position}: {message}")
