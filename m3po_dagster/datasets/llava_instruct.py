"""Reader of LLaVA-Instruct's layout (section 4.1), and ShareGPT4V's: a JSON array of {id, image, conversations}."""

from collections.abc import Iterator
from pathlib import Path

from m3po_dagster.datasets.conversation import Conversation, Refused, image_named, source_id_of, turns_of
from m3po_dagster.datasets.item import item_of
from m3po_dagster.datasets.json_array import read_array
from m3po_dagster.datasets.record import Malformed, Record


def read(path: Path, max_record_bytes: int = 16 << 20) -> Iterator[Record | Malformed]:
    """The records of the file in order, malformed ones included; memory holds one record.

    Other keys than id, image and conversations are ignored. A record without image, or with image null, is text-only.
    A conversation may start with either speaker. Raises DatasetError when the file itself is broken, naming file,
    record and position.
    """
    for position, raw in enumerate(read_array(path, max_record_bytes)):
        yield item_of(position, raw, _id, _content)


def _id(raw: dict) -> str:
    return source_id_of(_required(raw, "id"))


def _content(raw: dict) -> tuple[str | None, Conversation]:
    return image_named(raw), turns_of(_required(raw, "conversations"), "conversations")


def _required(raw: dict, key: str) -> object:
    if key not in raw:
        raise Refused(f"{key} is missing")
    return raw[key]
