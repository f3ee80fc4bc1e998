"""A row of source_dataset: a record and what is known of its image, as the filters take it."""

from dataclasses import dataclass

import pyarrow as pa

_TURNS = pa.list_(pa.struct([("speaker", pa.string()), ("text", pa.string())]))


def _field(name: str, kind: pa.DataType, description: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


ROWS = pa.schema(
    [
        _field("source", pa.string(), "name of the source", nullable=False),
        _field("record", pa.int64(), "position of the record in its source, from 0", nullable=False),
        _field("source_id", pa.string(), "the record's own id", nullable=False),
        _field("record_sha256", pa.string(), "hash of the record as read", nullable=False),
        _field("refused", pa.string(), "why the reader refused the record; null when it is well formed"),
        _field("conversation", _TURNS, "the turns; null for a refused record"),
        _field("image_name", pa.string(), "what the record calls its image: a path, a URL, a name inside the file"),
        _field("image_uri", pa.string(), "image path relative to the source's image folders; null for text only"),
        _field("image_sha256", pa.string(), "hash of the image file's bytes; null when it can't be read"),
        _field("width", pa.int32(), "upright width in pixels; null when it can't be decoded"),
        _field("height", pa.int32(), "upright height in pixels; null when it can't be decoded"),
        _field("phash", pa.uint64(), "perceptual hash of the upright image, 64 bits; null when it can't be decoded"),
        _field("image_problem", pa.string(), "why the image is no good; null when it can be used"),
        _field("image_detail", pa.string(), "what the problem is about"),
    ]
)
"""Columns of a shard's records, in record order within a source, sources in the study's order."""

IMAGE_OUTSIDE = "image outside the image root"
IMAGE_MISSING = "image missing"
IMAGE_UNDECODABLE = "image undecodable"
IMAGE_TOO_LARGE = "image too large"
IMAGE_URL = "image is a URL"
IMAGE_NOT_FETCHED = "image could not be fetched"


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image file once it was decoded as a prompt opens it, or why it is no good.

    `phash` is an unsigned 64-bit perceptual hash of the upright RGB image; sizes are upright, in pixels. `problem` is
    one of the IMAGE_ reasons, `detail` says more without naming the file; nothing but perhaps `sha256` is known then.
    """

    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    phash: int | None = None
    problem: str | None = None
    detail: str | None = None


UNKNOWN = ImageFacts()
"""What is known of the image of a record that has none."""


@dataclass(frozen=True)
class SourceRow:
    """One record of one source with its image's facts; `refused` says why a malformed one is none.

    `image_name` is what the record calls its image, `image_uri` where it lies.
    """

    source: str
    record: int
    source_id: str
    record_sha256: str
    refused: str | None
    conversation: tuple[tuple[str, str], ...] | None
    image_name: str | None
    image_uri: str | None
    image: ImageFacts = UNKNOWN

    def to_dict(self) -> dict:
        """The row in ROWS' columns."""
        turns = self.conversation
        return {
            "source": self.source,
            "record": self.record,
            "source_id": self.source_id,
            "record_sha256": self.record_sha256,
            "refused": self.refused,
            "conversation": None if turns is None else [{"speaker": who, "text": text} for who, text in turns],
            "image_name": self.image_name,
            "image_uri": self.image_uri,
            **{column: getattr(self.image, name) for name, column in _COLUMN.items()},
        }

    @classmethod
    def from_dict(cls, row: dict) -> "SourceRow":
        """The row of a dict in ROWS' columns."""
        turns = row["conversation"]
        return cls(
            **{name: row[name] for name in _PLAIN},
            conversation=None if turns is None else tuple((turn["speaker"], turn["text"]) for turn in turns),
            image=ImageFacts(**{name: row[column] for name, column in _COLUMN.items()}),
        )


_PLAIN = ("source", "record", "source_id", "record_sha256", "refused", "image_name", "image_uri")
_COLUMN = {
    "sha256": "image_sha256",
    "width": "width",
    "height": "height",
    "phash": "phash",
    "problem": "image_problem",
    "detail": "image_detail",
}
