"""Reader of WebDataset tar shards: members of one name, up to its first dot, are a sample.

The webdataset library reads every member whole, whatever its size, takes a broken header for the end of the file, and
opens its paths as URLs, `pipe:` among them; so the tar is read here, and the library is the oracle of the tests.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from m3po_dagster.datasets.conversation import ASKING, Conversation, Refused, conversation_of, image_of, source_id_of
from m3po_dagster.datasets.item import MAX_IMAGE_BYTES, item_of, malformed
from m3po_dagster.datasets.json_text import Unreadable, canonical_sha256, loads, said_by
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from m3po_dagster.datasets.tar_members import member_bytes, tar_members

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")

_NAME = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<suffix>[^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


def read(files: Sequence[Path], max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The samples of the tar files in order, malformed ones included; memory holds one sample.

    A sample has one image, or none for text only, and asks in its json as conversation_of says, or in its txt, which is
    the question alone. Its id is the json's, or its name without suffix. An image in the json is ignored, as are
    members of other suffixes, members named like `__this__` and, as the library does, names that start with a dot.
    Links and devices are never followed, and a name is only a name, whatever it looks like. Raises DatasetError for a
    broken file, naming file and byte.
    """
    position = 0
    for path in files:
        try:
            with path.open("rb") as file:
                for sample in _samples(path, file, max_record_bytes):
                    yield _item(position, path, sample)
                    position += 1
        except OSError as error:
            raise DatasetError(f"{path}: can't be read: {error}") from None


@dataclass
class _Sample:
    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    image: str | None = None
    problem: str | None = None


def _samples(path: Path, file: BinaryIO, max_record_bytes: int) -> Iterator[_Sample]:
    sample = None
    for member in tar_members(path, file):
        name = _NAME.fullmatch(member.name)
        if member.isdir() or name is None or _META.match(member.name):
            continue
        if sample is None or sample.key != name["key"]:
            if sample:
                yield sample
            sample = _Sample(name["key"])
        suffix = name["suffix"].lower()
        if sample.problem is None and suffix in (*IMAGES, "json", "txt"):
            sample.problem = _problem(sample, member, suffix, max_record_bytes)
            if sample.problem is None:
                sample.members["image" if suffix in IMAGES else suffix] = member_bytes(path, file, member)
                sample.image = member.name if suffix in IMAGES else sample.image
    if sample:
        yield sample


def _problem(sample: _Sample, member: tarfile.TarInfo, suffix: str, max_record_bytes: int) -> str | None:
    kind, limit = ("image", MAX_IMAGE_BYTES) if suffix in IMAGES else (suffix, max_record_bytes)
    if not member.isreg() or member.issparse():
        return f"its {suffix} is a link, a device or a sparse file, which is never followed"
    if kind in sample.members:
        return f"a second {kind}, {suffix}, under one name"
    if member.size > limit:
        return f"its {suffix} has {member.size:,} bytes, at most {limit:,} are read"
    return None


def _item(position: int, path: Path, sample: _Sample) -> Record | Malformed:
    where = f"{path.name}, {sample.key[:200]!r}: "
    raw: dict = {"key": sample.key, "image": sample.image}
    problem = sample.problem
    try:
        if problem is None:
            raw |= _asked(sample)
    except UnicodeDecodeError as error:
        problem = f"its text is not UTF-8 at byte {error.start}: {error.reason}"
    except json.JSONDecodeError as error:
        problem = f"its json is no JSON at character {error.pos}: {said_by(error)}"
    if problem is None and isinstance(raw.get("json"), Unreadable):
        problem = raw.pop("json").detail
    if problem is not None:
        return malformed(position, canonical_sha256(raw), where + problem)
    return item_of(position, raw, _id, _content, sample.members.get("image"), where)


def _asked(sample: _Sample) -> dict:
    texts = {kind: sample.members[kind].decode("utf-8-sig") for kind in ("json", "txt") if kind in sample.members}
    if "json" in texts:
        texts["json"] = loads(texts["json"])
    return texts


def _id(raw: dict) -> str:
    fields = raw.get("json")
    own = fields.get("id") if isinstance(fields, dict) else None
    return source_id_of(raw["key"], "its name") if own is None else source_id_of(own)


def _content(raw: dict) -> tuple[str | None, Conversation]:
    fields = raw.get("json", {})
    if isinstance(fields, dict) and "txt" in raw and not any(form in fields for form in ASKING):
        fields = {"question": raw["txt"].rstrip("\r\n")}
    if raw["image"] is None and isinstance(fields, dict) and fields.get("images"):
        raise Refused("its json names images, and none is in the tar: a sample has one image, put it beside the json")
    return image_of(raw["image"], "the image's name"), conversation_of(fields)
