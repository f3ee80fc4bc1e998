"""What every reader gives: records of a dataset, and the malformed ones with the reason."""

from dataclasses import dataclass


class DatasetError(ValueError):
    """A dataset file that can't be read as a whole; the message names the file and the position."""


@dataclass(frozen=True)
class Record:
    """One record as read: an image (or none) and a conversation of (speaker, text), speaker 'human' or 'gpt'.

    `record` counts from 0 over all files of the source. `image` is the path or URL as the file gives it; where the
    dataset's own file holds the image, `image_bytes` are its bytes and `image` is its name or None. `sha256` hashes the
    record's canonical JSON, the bytes of an image apart. `own_id` is false where the dataset names none and `source_id`
    is but the record's number.
    """

    record: int
    source_id: str
    image: str | None
    conversation: tuple[tuple[str, str], ...]
    sha256: str
    image_bytes: bytes | None = None
    own_id: bool = True


@dataclass(frozen=True)
class Malformed:
    """A record that is not of the dataset's format; `detail` names the field."""

    record: int
    source_id: str
    sha256: str
    detail: str
    reason: str = "malformed record"
