"""Reader of RLAIF-V's Parquet files: images inside, a question, and a preferred and a rejected answer."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from m3po_dagster.datasets.arrow_files import Column, batches_of, is_id, is_image, is_text
from m3po_dagster.datasets.arrow_rows import items_of
from m3po_dagster.datasets.conversation import Conversation, image_of, question_and_answer, source_id_of
from m3po_dagster.datasets.record import Malformed, Record

_COLUMNS = (
    Column("image", is_image, "an image, {bytes, path}"),
    Column("question", is_text, "text"),
    Column("chosen", is_text, "text"),
    Column("idx", is_id, "text or a whole number", optional=True),
    Column("ds_name", is_text, "text", optional=True),
    Column("image_path", is_text, "text", optional=True),
)


def read(files: Sequence[Path], max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The rows of the files in order, malformed ones included; memory holds a few rows.

    The preferred answer is the dataset's own, so it is the answer of the record; the rejected one is left aside. The id
    is `ds_name/idx`, or the row's position over all files; the image's name is `image_path`, else its own path, else
    none; an empty one is none. Raises
    DatasetError for a broken file or a column that is missing or of another type, naming the file.
    """
    return items_of(batches_of(files, _COLUMNS), "image", _id, _content, max_record_bytes)


def _id(raw: dict) -> str | None:
    if raw.get("idx") is None:
        return None
    idx = source_id_of(raw["idx"], "idx")
    return idx if raw.get("ds_name") is None else source_id_of(f"{raw['ds_name']}/{idx}", "ds_name/idx")


def _content(raw: dict) -> tuple[str | None, Conversation]:
    # Empty where the row's data set had no path: it names nothing then.
    named = "image_path" if raw.get("image_path") else "image"
    return image_of(raw[named], named), question_and_answer(raw["question"], raw["chosen"], ("question", "chosen"))
