"""Reader of JSON lines, as a user writes them by hand: an object a line with an image and a question."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from m3po_dagster.datasets.conversation import Conversation, conversation_of, image_named, source_id_of
from m3po_dagster.datasets.item import item_of, malformed
from m3po_dagster.datasets.json_text import loads, said_by
from m3po_dagster.datasets.record import DatasetError, Malformed, Record

_SKIPPED_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(path: Path, max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The records of the file in order, malformed ones included; memory holds one line of at most `max_record_bytes`.

    A record asks as conversation_of says. Its id is the number of its line where it names none; without an image, or
    with image null, it is text-only; other keys are ignored. Blank lines are no records. A line that is no JSON, not
    UTF-8 or too long is one malformed record. Raises DatasetError when the file is missing, unreadable, UTF-16, or a
    JSON array.
    """
    try:
        with path.open("rb") as file:
            yield from _read(path, file, max_record_bytes)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such dataset file; correct the source's path") from None
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error}") from None


def _read(path: Path, file: BinaryIO, max_record_bytes: int) -> Iterator[Record | Malformed]:
    position, starts_with, any_good = 0, b"", False
    for number, (line, length, sha256) in enumerate(_lines(file, max_record_bytes), start=1):
        if number == 1:
            if line.startswith(_UTF16_MARKS):
                raise DatasetError(f"{path}: the file is UTF-16; save it as UTF-8")
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.strip():
            continue
        starts_with = starts_with or line.lstrip()[:1]
        item = _item(position, number, line, length, sha256, max_record_bytes)
        any_good = any_good or isinstance(item, Record)
        yield item
        position += 1
    if starts_with == b"[" and not any_good:
        raise DatasetError(
            f"{path}: no line is a record, and the first starts with '[': it looks like a JSON array, "
            "which format llava_instruct reads"
        )


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[bytes, int, str]]:
    """Each line without its end, its length in bytes and its hash; the start alone of a line beyond `max_bytes`."""
    while line := file.readline(max_bytes + 2):
        start = line.rstrip(b"\r\n")
        length, digest = len(start), hashlib.sha256(start)
        while not line.endswith(b"\n") and (line := file.readline(_SKIPPED_BYTES)):
            rest = line.rstrip(b"\r\n")
            digest.update(rest)
            length += len(rest)
        yield start, length, digest.hexdigest()


def _item(
    position: int, number: int, line: bytes, length: int, sha256: str, max_record_bytes: int
) -> Record | Malformed:
    where = f"line {number}: "
    if length > max_record_bytes:
        detail = f"{length:,} bytes, more than {max_record_bytes:,}; max_record_megabytes allows more"
        return malformed(position, sha256, where + detail)
    try:
        raw = loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return malformed(position, sha256, f"{where}not UTF-8 at byte {error.start}: {error.reason}")
    except json.JSONDecodeError as error:
        return malformed(position, sha256, f"{where}no JSON at character {error.pos}: {said_by(error)}")
    return item_of(position, raw, _id, _content, where=where, number=number)


def _id(raw: dict) -> str | None:
    return None if raw.get("id") is None else source_id_of(raw["id"])


def _content(raw: dict) -> tuple[str | None, Conversation]:
    return image_named(raw), conversation_of(raw)
