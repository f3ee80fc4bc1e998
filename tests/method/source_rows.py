"""Rows of source_dataset for the tests of the filters, as the index makes them."""

import hashlib
from collections import Counter

from m3po_dagster.datasets.row import ImageFacts, SourceRow
from m3po_dagster.method.filtering import FilterResult

TELLING = 0x0F1E2D3C4B5A6978
"""A perceptual hash of half its bits."""


def image(content: str, width: int = 640, height: int = 480, phash: int | None = None) -> ImageFacts:
    """The facts of an image whose bytes are told by `content`; other bytes look quite different without a `phash`."""
    digest = hashlib.sha256(content.encode())
    looks = int.from_bytes(digest.digest()[:8], "big") if phash is None else phash
    return ImageFacts(digest.hexdigest(), width, height, looks)


def said(*texts: str) -> tuple[tuple[str, str], ...]:
    """A conversation that a human starts."""
    return tuple((("human", "gpt")[number % 2], text) for number, text in enumerate(texts))


def row(
    question: str | tuple[tuple[str, str], ...] = "What is it?",
    record: int = 0,
    uri: str | None = "a.png",
    facts: ImageFacts | None = None,
    source: str = "toy",
    refused: str | None = None,
    name: str | None = None,
) -> SourceRow:
    """A record that asks a question, or holds a conversation, about the image at `uri`."""
    conversation = said(question, "A bus.") if isinstance(question, str) else question
    return SourceRow(
        source=source,
        record=record,
        source_id=f"id{record}",
        record_sha256="0" * 64,
        refused=refused,
        conversation=None if refused else conversation,
        image_name=name or uri,
        image_uri=uri,
        image=facts or (ImageFacts() if uri is None else image(uri)),
    )


def drop_counts(result: FilterResult) -> dict[str, int]:
    """How many rows of the table of dropped items have each reason."""
    return Counter(item["reason"] for item in result.dropped)
