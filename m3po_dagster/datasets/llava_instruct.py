"""Reader of LLaVA-Instruct's layout: a JSON array of {id, image, conversations: [{from, value}, ...]} (section 4.1)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from m3po_dagster.datasets.json_array import read_array
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.settings import Settings

SPEAKERS = ("human", "gpt")
MAX_ID_CHARACTERS = 512


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


class _Refused(ValueError):
    """What is wrong with a record, naming the field."""


def read(path: Path) -> Iterator[Record | Malformed]:
    """The records of the file in order, malformed ones included; memory holds one record.

    Other keys than id, image and conversations are ignored. A record without image, or with image null, is text-only.
    Raises DatasetError when the file itself is broken, naming file and position.
    """
    for position, raw in enumerate(read_array(path)):
        # ASCII escapes: half a surrogate pair, which JSON can hold, has no UTF-8 form.
        digest = hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()
        try:
            yield _record(position, raw, digest)
        except _Refused as refused:
            yield Malformed(position, _source_id_or_position(position, raw), digest, str(refused))


def _record(position: int, raw: object, digest: str) -> Record:
    if not isinstance(raw, dict):
        raise _Refused(f"a record is an object, this is {_kind(raw)}")
    for key in ("id", "conversations"):
        if key not in raw:
            raise _Refused(f"{key} is missing")
    image = raw.get("image")
    if image is not None and _text(image, "image") == "":
        raise _Refused("image is empty; leave the key out for a text-only record")
    return Record(position, _source_id(raw["id"]), image, _conversation(raw["conversations"]), digest)


def _conversation(turns: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(turns, list):
        raise _Refused(f"conversations is {_kind(turns)}, expected an array")
    if not turns:
        raise _Refused("conversations is empty")
    return tuple(_turn(turn, f"conversations[{number}]") for number, turn in enumerate(turns))


def _turn(turn: object, field: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise _Refused(f"{field} is {_kind(turn)}, expected an object")
    for key in ("from", "value"):
        if key not in turn:
            raise _Refused(f"{field}.{key} is missing")
    speaker = _text(turn["from"], f"{field}.from")
    if speaker not in SPEAKERS:
        raise _Refused(f"{field}.from is {speaker[:40]!r}, expected 'human' or 'gpt'")
    return speaker, _text(turn["value"], f"{field}.value")


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _Refused(f"{field} is {_kind(value)}, expected a string")
    if "\0" in value:
        raise _Refused(f"{field} holds a NUL character")
    if not _encodable(value):
        raise _Refused(f"{field} holds half a surrogate pair, which is no character")
    return value


def _source_id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = _text(value, "id")
    if not 0 < len(text) <= MAX_ID_CHARACTERS:
        raise _Refused(f"id has {len(text)} characters, expected 1 to {MAX_ID_CHARACTERS}")
    return text


def _source_id_or_position(position: int, raw: object) -> str:
    try:
        return _source_id(raw["id"] if isinstance(raw, dict) else None)
    except (_Refused, KeyError):
        return f"#{position}"


def _encodable(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"the number {value}")
