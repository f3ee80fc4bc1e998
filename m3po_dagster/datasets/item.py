"""One record of a dataset as its reader gives it: a Record, or Malformed with what is wrong."""

from collections.abc import Callable

from m3po_dagster.datasets.conversation import Conversation, Refused, kind
from m3po_dagster.datasets.json_text import Unreadable, canonical_sha256
from m3po_dagster.datasets.record import Malformed, Record

MAX_IMAGE_BYTES = 256 << 20
"""Largest image that a dataset's own file may hold."""


def item_of(
    position: int,
    raw: object,
    id_of: Callable[[dict], str | None],
    content_of: Callable[[dict], tuple[str | None, Conversation]],
    image_bytes: bytes | None = None,
    where: str = "",
    number: int | None = None,
) -> Record | Malformed:
    """The record of a raw value, hashed without the image's bytes.

    `id_of` gives a record's id, None where it names none: then the id is `number`, or the position. `content_of` gives
    its image and turns; either raises Refused. A malformed record without a good id has `#position` for one; `where` is
    put before what is wrong with it, where the position doesn't find it.
    """
    if isinstance(raw, Unreadable):
        return malformed(position, raw.sha256, where + raw.detail)
    sha256 = canonical_sha256(raw)
    if not isinstance(raw, dict):
        return malformed(position, sha256, f"{where}a record is an object, this is {kind(raw)}")
    own_id = source_id = None
    try:
        own_id = id_of(raw)
        source_id = str(position if number is None else number) if own_id is None else own_id
        image, conversation = content_of(raw)
    except Refused as refused:
        return malformed(position, sha256, f"{where}{refused}", source_id)
    return Record(position, source_id, image, conversation, sha256, image_bytes, own_id is not None)


def malformed(position: int, sha256: str, detail: str, source_id: str | None = None) -> Malformed:
    """A malformed record, with `#position` for an id where it has none."""
    return Malformed(position, source_id or f"#{position}", sha256, detail)
