"""Reader of LLaVA-Instruct's layout (section 4.1), and ShareGPT4V's: a JSON array of {id, image, conversations}."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from m3po_dagster.datasets.conversation import Conversation, Refused, image_named, source_id_of, turns_of
from m3po_dagster.datasets.item import item_of
from m3po_dagster.datasets.json_array import read_array
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.settings import Settings


class DatasetSettings(Settings):
    """A dataset of image-instruction pairs."""

    format: Literal["llava_instruct"] = Field(
        "llava_instruct", description="layout of the file: LLaVA-Instruct's array"
    )
    name: str = Field(
        "llava_instruct", min_length=1, max_length=80, description="name of the dataset, kept with every prompt"
    )
    path: Path = Field(description="the JSON file with the records")
    image_root: Path = Field(description="folder that the records' image paths are relative to")
    turns: Literal["first", "last"] = Field(
        "first",
        description="which question of a conversation is asked: the first alone, or the last with the turns before it",
    )
    shards: int = Field(8, ge=1, le=99, description="number of shards; all records of an image share a shard")


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
