"""What the filters need of a row of source_dataset; the datasets' own classes have it."""

from typing import Protocol


class ImageFacts(Protocol):
    """What is known of an image; `problem` says why it can't be used."""

    sha256: str | None
    width: int | None
    height: int | None
    phash: int | None
    problem: str | None
    detail: str | None


class SourceRow(Protocol):
    """A record of a source; `refused` says why a malformed one is none, `image_name` what it calls its image."""

    source: str
    record: int
    source_id: str
    refused: str | None
    conversation: tuple[tuple[str, str], ...] | None
    image_name: str | None
    image_uri: str | None
    image: ImageFacts


def is_usable(image: ImageFacts) -> bool:
    """Whether the image can be used: nothing is wrong with it, and all is known of it."""
    known = (image.sha256, image.width, image.height, image.phash)
    return image.problem is None and all(fact is not None for fact in known)
