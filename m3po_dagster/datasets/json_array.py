"""Reads a JSON array of records one by one: memory holds one chunk of the file and one record."""

import json
from collections.abc import Iterator
from pathlib import Path

from m3po_dagster.datasets.record import DatasetError

CHUNK_CHARACTERS = 1 << 20
_SPACE = " \t\r\n"
_LONGEST_REST = 2


def read_array(path: Path, chunk_characters: int = CHUNK_CHARACTERS) -> Iterator[object]:
    """The values of the JSON array that the file holds, in order.

    Raises DatasetError when the file is missing, unreadable, not UTF-8, not an array, broken or cut short; the message
    names the file, the record and the character.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Array(path, file, chunk_characters)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such dataset file; correct dataset.path") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error}") from None


class _Array:
    """A window over the file's text; a value is taken once what follows it is in the window too."""

    def __init__(self, path: Path, file, chunk_characters: int):
        self.path, self.file, self.chunk = path, file, chunk_characters
        self.window, self.at, self.before, self.ended = "", 0, 0, False
        self.decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[object]:
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
        position = 0
        while True:
            yield self._value(position)
            position += 1
            separator = self._next_character()
            if separator not in (",", "]"):
                found = repr(separator) if separator else "the end of the file"
                self._fail(f"expected ',' or ']' after record {position - 1}, found {found}")
            self.at += 1
            if separator == "]":
                return

    def _value(self, position: int) -> object:
        self._next_character()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                absolute = self.before + error.pos
                # A value that is merely cut off fails at the window's end, or at the start of a string without an end.
                cut = error.pos > len(self.window) - 16 or error.msg.startswith("Unterminated string")
                if not (cut and self._more()):
                    self._fail(f"record {position} is broken or cut short: {error.msg}", absolute)
                continue
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested without end
                self._fail(f"record {position} can't be decoded: {error}")
            # A number may go on: of "1.5e+3" cut after the plus, "1.5" is a value and two characters are left.
            if end + _LONGEST_REST < len(self.window) or not self._more():
                self.at = end
                return value

    def _next_character(self) -> str:
        """Moves to the next character that is not white space; '' at the end of the file."""
        while True:
            while self.at < len(self.window) and self.window[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.window):
                return self.window[self.at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Drops what is done and doubles what is left: a long record is parsed a logarithmic number of times."""
        if self.ended:
            return False
        new = self.file.read(max(self.chunk, len(self.window) - self.at))
        if new == "":
            self.ended = True
            return False
        self.before += self.at
        self.window, self.at = self.window[self.at :] + new, 0
        return True

    def _fail(self, message: str, position: int | None = None):
        position = self.before + self.at if position is None else position
        raise DatasetError(f"{self.path}, character {position}: {message}")
