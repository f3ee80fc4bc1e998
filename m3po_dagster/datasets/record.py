"""What every reader gives: records of a dataset, and the malformed ones with the reason."""

from dataclasses import dataclass


class DatasetError(ValueError):
    """A dataset file that can't be read as a whole; the message names the file and the position."""


@dataclass(frozen=True)
class Record:
    """One record as read: an image (or none) and a conversation of (speaker, text), speaker 'human' or 'gpt'.

    `image` is the path as the file gives it, relative to the image root; `sha256` hashes the record's canonical JSON.
    """

    record: int
    source_id: str
    image: str | None
    conversation: tuple[tuple[str, str], ...]
    sha256: str


@dataclass(frozen=True)
class Malformed:
    """A record that is valid JSON but not of the dataset's format; `detail` names the field."""

    record: int
    source_id: str
    sha256: str
    detail: str
    reason: str = "malformed record"
