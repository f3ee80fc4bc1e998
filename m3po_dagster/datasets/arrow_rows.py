"""Rows of Arrow batches that a stranger wrote, and the images in them, as bytes: nothing is decoded."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from m3po_dagster.datasets.arrow_files import Batches, is_binary
from m3po_dagster.datasets.conversation import Conversation, Refused, text_of
from m3po_dagster.datasets.item import MAX_IMAGE_BYTES, item_of, malformed
from m3po_dagster.datasets.json_text import canonical_sha256
from m3po_dagster.datasets.record import Malformed, Record

Row = dict[str, pa.Scalar]


def items_of(
    batches: Batches,
    image_column: str,
    id_of: Callable[[dict], str | None],
    content_of: Callable[[dict], tuple[str | None, Conversation]],
    max_record_bytes: int,
) -> Iterator[Record | Malformed]:
    """A record or a malformed one for each row.

    `id_of` and `content_of` are given a row's values by column, the image's being its name, as `item_of` says.
    """
    position, path, number = 0, None, 0
    for source, batch in batches:
        path, number = source, number if source == path else 0
        for row in _rows(batch):
            where = f"{path.name}, row {number}: "
            raw, image_bytes = {}, None
            try:
                raw, image_bytes = _values(row, image_column, max_record_bytes)
            except Refused as refused:
                yield malformed(position, canonical_sha256(str(refused)), f"{where}{refused}")
            else:
                yield item_of(position, raw, id_of, content_of, image_bytes, where)
            position, number = position + 1, number + 1


def _rows(batch: pa.RecordBatch) -> Iterator[Row | Refused]:
    """The batch's rows by column, or why a row can't be read: text that is not UTF-8, offsets that lead elsewhere.

    A file's claims about its own buffers are checked before any value is touched.
    """
    try:
        batch.validate(full=True)
        sound = True
    except pa.ArrowInvalid:
        sound = False
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            if not sound:
                for column in row.columns:
                    _validate(column)
        except pa.ArrowInvalid as error:
            yield Refused(str(error))
        else:
            yield {name: row.column(name)[0] for name in row.schema.names}


def _validate(array: pa.Array) -> None:
    """Raises ArrowInvalid for the slice alone: when nested, pyarrow's full check takes in all that lies beside it."""
    if not isinstance(array, (pa.StructArray, pa.ListArray, pa.LargeListArray)):
        return array.validate(full=True)
    array.validate()
    inner = array.flatten()
    for part in inner if isinstance(inner, list) else [inner]:
        _validate(part)


def _values(row: Row | Refused, image_column: str, max_record_bytes: int) -> tuple[dict, bytes | None]:
    """The row's values by column, the image's name in its place, and the image's bytes."""
    if isinstance(row, Refused):
        raise row
    name, image_bytes = _image(row[image_column], image_column)
    values = {column: _value(scalar, column) for column, scalar in row.items() if column != image_column}
    values[image_column] = name
    _refuse_long(values.values(), max_record_bytes)
    return values, image_bytes


def _image(scalar: pa.Scalar, field: str) -> tuple[str | None, bytes | None]:
    """Name and bytes of the image in an image feature ({bytes, path}), in bytes alone, or in a path alone.

    (None, None) where the row has no image; bytes are None where the file has but the path. Raises Refused.
    """
    if isinstance(scalar, pa.StructScalar) and scalar.is_valid:
        path = _value(scalar["path"], f"{field}.path") if "path" in scalar else None
        data = _bytes(scalar["bytes"], f"{field}.bytes") if "bytes" in scalar else None
        # An empty path names nothing: libraries write one where an image has bytes alone.
        return text_of(path, f"{field}.path") if path else None, data
    if is_binary(scalar.type):
        return None, _bytes(scalar, field)
    path = _value(scalar, field)
    return None if path is None else text_of(path, field), None


def _bytes(scalar: pa.Scalar, field: str) -> bytes | None:
    if not scalar.is_valid:
        return None
    size = scalar.as_buffer().size
    if not 0 < size <= MAX_IMAGE_BYTES:
        raise Refused(f"{field} has {size:,} bytes, expected 1 to {MAX_IMAGE_BYTES:,}")
    return scalar.as_py()


def _value(scalar: pa.Scalar, field: str) -> object:
    """The Python value of a field. Raises Refused."""
    try:
        return scalar.as_py()
    except ValueError as error:  # not UTF-8, or a date beyond Python's
        raise Refused(f"{field} can't be read: {error}") from None


def _refuse_long(values: Iterable[object], max_record_bytes: int) -> None:
    """Raises Refused when the texts in the values, however nested, have more bytes together."""
    total, waiting = 0, list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            total += len(value.encode("utf-8"))
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    if total > max_record_bytes:
        raise Refused(f"{total:,} bytes of text, more than {max_record_bytes:,}; max_record_megabytes allows more")
