"""Which image-instruction pairs are kept (paper, section 4.1): every other record is dropped with a counted reason.

The paper says "high-quality image-instruction pairs" and gives no rule. The rules here, cheap ones first: the record is
well formed, its conversation starts with a human turn and alternates, the instruction has a sane length, the image
exists below the image root, decodes and has a sane size, and no earlier record asks the same of the same image.
"""

import hashlib
import json
import re
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, runtime_checkable

from pydantic import Field, model_validator

from m3po_dagster.image_files import FORMATS, ImageOutsideRoot, locate
from m3po_dagster.method.prompt import Message
from m3po_dagster.settings import Settings

TEXT_ONLY = "text-only"
IMAGE_OUTSIDE = "image outside the image root"
IMAGE_MISSING = "image missing"
IMAGE_UNDECODABLE = "image undecodable"
IMAGE_TOO_LARGE = "image too large"
IMAGE_TOO_SMALL = "image too small"
IMAGE_TOO_LONG = "image too elongated"
NOT_HUMAN_FIRST = "first turn not human"
NOT_ALTERNATING = "turns don't alternate"
INSTRUCTION_EMPTY = "instruction empty"
INSTRUCTION_SHORT = "instruction too short"
INSTRUCTION_LONG = "instruction too long"
DUPLICATE = "exact duplicate"

PROMPT_ID_CHARACTERS = 32

_IMAGE_TOKEN = re.compile(r"(\r?\n)?<image>(?:(?:\r?\n)?<image>)*(\r?\n)?")
# What Pillow's decoders raise on hostile files; MemoryError because a header can promise more than there is.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class FilterSettings(Settings):
    """Which image-instruction pairs are kept (section 4.1)."""

    min_side: int = Field(112, ge=1, le=10_000, description="smallest width and height in pixels")
    max_aspect: float = Field(
        3.0, ge=1, le=1000, description="largest ratio of the longer to the shorter side of the image"
    )
    max_megapixels: float = Field(
        80.0, gt=0, le=1000, description="images of more million pixels are dropped before they are decoded"
    )
    min_characters: int = Field(4, ge=1, description="fewest characters of an instruction, spaces at its ends apart")
    max_characters: int = Field(2048, ge=1, description="most characters of an instruction, spaces at its ends apart")
    dedup_normalised: bool = Field(
        True,
        description="drop a record whose image has the same bytes and whose turns differ only in case and spacing from "
        "an earlier record's; turns that are equal to the letter are always dropped, being one prompt",
    )

    @model_validator(mode="after")
    def _lengths(self) -> "FilterSettings":
        if self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} is above max_characters {self.max_characters}")
        return self


class SourceRecord(Protocol):
    """A record as a reader gives it."""

    record: int
    source_id: str
    image: str | None
    conversation: tuple[tuple[str, str], ...]


@runtime_checkable
class MalformedRecord(Protocol):
    """A record that the reader refused."""

    record: int
    source_id: str
    detail: str
    reason: str


@dataclass
class FilterResult:
    """Kept prompts, as rows of filtered_instructions, and dropped records, as rows of dropped, in record order."""

    kept: list[dict] = field(default_factory=list)
    dropped: list[dict] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Reason -> number of dropped records, the most frequent first."""
        return dict(Counter(row["reason"] for row in self.dropped).most_common())


class _Dropped(Exception):
    """Why a record is dropped."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class _Image:
    """What is known of an image file: its hash and upright size, or why it is no good."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    dropped: _Dropped | None = None


def filter_records(
    records: Sequence[SourceRecord | MalformedRecord],
    image_root: Path,
    settings: FilterSettings,
    *,
    source: str,
    turns: Literal["first", "last"] = "first",
    progress: Callable[[int, int], None] | None = None,
) -> FilterResult:
    """Keeps the records that make a prompt, drops the others with reason and detail (section 4.1).

    `turns` says which question is asked: the first, or the last with the turns before it; the dataset's answer to it
    becomes the reference. An image is opened once, however many records ask about it. Equal images have one shard, so
    dropping the duplicates of a shard drops those of the dataset. A dropped record's item_id is `source#position`.
    `progress` is told the records done and their number.
    """
    images: dict[str, _Image] = {}
    first_seen: dict[str, str] = {}
    result = FilterResult()
    for done, item in enumerate(records, start=1):
        item_id = f"{source}#{item.record}"
        try:
            row = _prompt_row(item, image_root, settings, turns, images)
            _refuse_duplicate(row, item_id, settings, first_seen)
        except _Dropped as dropped:
            detail = f"{dropped.detail} (id {item.source_id})"
            result.dropped.append({"item_id": item_id, "reason": dropped.reason, "detail": detail})
        else:
            result.kept.append({**row, "source": source, "source_id": item.source_id})
        if progress:
            progress(done, len(records))
    return result


def strip_image_token(text: str) -> str:
    """The text without <image> and the newline beside it, wherever it stands; the rest is verbatim."""

    def newline_kept(match: re.Match) -> str:
        at_an_end = match.start() == 0 or match.end() == len(match.string)
        return "" if at_an_end else match[1] or match[2] or ""

    # Removing one token can put another together.
    while "<image>" in text:
        text = _IMAGE_TOKEN.sub(newline_kept, text)
    return text


def prompt_id(image_sha256: str, messages: Sequence[Message]) -> str:
    """The first 32 hexadecimal digits of the sha256 over the image's hash and the conversation's canonical JSON."""
    identity = [image_sha256, [[message.role, message.text] for message in messages]]
    canonical = json.dumps(identity, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:PROMPT_ID_CHARACTERS]


def _prompt_row(
    item: SourceRecord | MalformedRecord,
    image_root: Path,
    settings: FilterSettings,
    turns: str,
    images: dict[str, _Image],
) -> dict:
    if isinstance(item, MalformedRecord):
        raise _Dropped(item.reason, item.detail)
    if item.image is None:
        raise _Dropped(TEXT_ONLY, "the record has no image")
    messages, reference = _conversation(item.conversation, turns)
    _check_instruction(messages, settings)
    uri = str(PurePosixPath(item.image))
    if uri not in images:
        images[uri] = _open(image_root, uri, settings)
    image = images[uri]
    if image.dropped:
        raise image.dropped
    return {
        "prompt_id": prompt_id(image.sha256, messages),
        "image_uri": uri,
        "image_sha256": image.sha256,
        "width": image.width,
        "height": image.height,
        "messages": [{"role": message.role, "text": message.text} for message in messages],
        "reference": reference,
    }


def _conversation(turns: Sequence[tuple[str, str]], which: str) -> tuple[list[Message], str | None]:
    if turns[0][0] != "human":
        raise _Dropped(NOT_HUMAN_FIRST, f"conversations[0].from is {turns[0][0]!r}")
    for number, (speaker, _) in enumerate(turns):
        if speaker != ("human", "gpt")[number % 2]:
            raise _Dropped(NOT_ALTERNATING, f"conversations[{number}].from is {speaker!r} again")
    texts = [unicodedata.normalize("NFC", strip_image_token(text)) for _, text in turns]
    asked = 0 if which == "first" else (len(turns) - 1) // 2 * 2
    messages = [Message(("user", "assistant")[number % 2], texts[number]) for number in range(asked + 1)]
    return messages, texts[asked + 1] if asked + 1 < len(texts) else None


def _check_instruction(messages: Sequence[Message], settings: FilterSettings) -> None:
    for number, message in enumerate(messages):
        if not message.text.strip():
            raise _Dropped(INSTRUCTION_EMPTY, f"conversations[{number}].value has no text")
    characters = len(messages[-1].text.strip())
    if characters < settings.min_characters:
        raise _Dropped(INSTRUCTION_SHORT, f"{characters} characters, min_characters is {settings.min_characters}")
    if characters > settings.max_characters:
        raise _Dropped(INSTRUCTION_LONG, f"{characters} characters, max_characters is {settings.max_characters}")


def _open(image_root: Path, uri: str, settings: FilterSettings) -> _Image:
    try:
        path = locate(image_root, uri)
        if not path.is_file():
            raise _Dropped(IMAGE_MISSING, f"no file {uri}")
        return _decode(path, uri, settings)
    except ImageOutsideRoot as error:
        return _Image(dropped=_Dropped(IMAGE_OUTSIDE, str(error)))
    except OSError as error:
        return _Image(dropped=_Dropped(IMAGE_MISSING, f"{uri} can't be read: {error.strerror}"))
    except _Dropped as dropped:
        return _Image(dropped=dropped)


def _decode(path: Path, uri: str, settings: FilterSettings) -> _Image:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        width, height = _upright_size(file, uri, settings.max_megapixels)
    shorter, longer = min(width, height), max(width, height)
    if shorter < settings.min_side:
        raise _Dropped(IMAGE_TOO_SMALL, f"{uri} is {width}x{height}, min_side is {settings.min_side}")
    if longer > settings.max_aspect * shorter:
        raise _Dropped(IMAGE_TOO_LONG, f"{uri} is {width}x{height}, max_aspect is {settings.max_aspect}")
    return _Image(sha256, width, height)


def _upright_size(file, uri: str, max_megapixels: float) -> tuple[int, int]:
    """Decodes the whole image just as a prompt opens it: what passes here opens later."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # The size that Pillow warns of is checked below, before any pixel is decoded.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > max_megapixels * 1e6:
                    detail = f"{uri} promises {image.width}x{image.height} pixels, max_megapixels is {max_megapixels}"
                    raise _Dropped(IMAGE_TOO_LARGE, detail)
                return ImageOps.exif_transpose(image).convert("RGB").size
    except Image.DecompressionBombError as error:
        raise _Dropped(IMAGE_TOO_LARGE, f"{uri}: {error}") from None
    except _DECODE_ERRORS as error:
        raise _Dropped(IMAGE_UNDECODABLE, f"{uri}: {type(error).__name__}: {error}") from None


def _refuse_duplicate(row: dict, item_id: str, settings: FilterSettings, first_seen: dict[str, str]) -> None:
    key = row["prompt_id"]
    if settings.dedup_normalised:
        turns = [[turn["role"], _normalised(turn["text"])] for turn in row["messages"]]
        key = json.dumps([row["image_sha256"], turns])
    if key in first_seen:
        raise _Dropped(DUPLICATE, f"asks the same of the same image as {first_seen[key]}")
    first_seen[key] = item_id


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
