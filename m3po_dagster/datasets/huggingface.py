"""Reader of Hugging Face datasets on disk: folders of save_to_disk, and Parquet or Arrow files."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from m3po_dagster.datasets.arrow_files import (
    Column,
    batches_of,
    columns_there,
    is_id,
    is_image,
    is_list,
    is_text,
    named,
)
from m3po_dagster.datasets.arrow_rows import items_of
from m3po_dagster.datasets.conversation import Conversation, image_of, question_and_answer, source_id_of, turns_of
from m3po_dagster.datasets.files import files_of
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from m3po_dagster.datasets.settings import HuggingFaceSource
from m3po_dagster.s3_files.path import S3Path

_BATCH_ROWS = 256
_OF_SPLIT = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.(parquet|arrow)", re.IGNORECASE)


def read(source: HuggingFaceSource, max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The rows in order, malformed ones included; memory holds a few rows and no image is decoded.

    An image without bytes has a path, relative to the image root. The id is the row's position where no id column is
    named. Raises DatasetError for a broken file or a column that is missing or of another type, naming the file.
    """
    columns = [Column(source.image_column, is_image, "an image feature, bytes or paths: one image a row")]
    if source.conversation_column is not None:
        columns.append(Column(source.conversation_column, is_list, "a list of turns"))
    if source.question_column is not None:
        columns.append(Column(source.question_column, is_text, "text"))
    if source.answer_column is not None:
        columns.append(Column(source.answer_column, is_text, "text"))
    if source.id_column is not None:
        columns.append(Column(source.id_column, is_id, "text or whole numbers"))
    folder = _saved_folder(source)
    batches = batches_of(source_files(source), columns) if folder is None else named(folder, _saved(folder, columns))

    def id_of(raw: dict) -> str | None:
        return None if source.id_column is None else source_id_of(raw[source.id_column], source.id_column)

    def content_of(raw: dict) -> tuple[str | None, Conversation]:
        image = image_of(raw[source.image_column], source.image_column)
        if source.conversation_column is not None:
            return image, turns_of(raw[source.conversation_column], source.conversation_column)
        answer = None if source.answer_column is None else raw[source.answer_column]
        fields = (source.question_column, source.answer_column or "")
        return image, question_and_answer(raw[source.question_column], answer, fields)

    return items_of(batches, source.image_column, id_of, content_of, max_record_bytes)


def source_files(source: HuggingFaceSource) -> list[Path]:
    """The Parquet or Arrow files of the split, in the order they are read.

    Of files named like the hub's, SPLIT-00000-of-00005.parquet, those of the source's split. Without one all files, if
    they are of one split. Raises DatasetError for several splits of which none is named, and for a split that is not
    there.
    """
    folder = _saved_folder(source)
    if folder is not None:
        return [folder / name for name in _saved_names(folder)]
    files = files_of(source.path, (".parquet", ".arrow"))
    names = [_OF_SPLIT.fullmatch(path.name) for path in files]
    splits = sorted({name["split"] for name in names if name})
    if source.split is None:
        _refuse_several(source.path, splits)
        return files
    # The library's own cache puts the dataset's name before the split's.
    of_split = {split for split in splits if split == source.split or split.endswith(f"-{source.split}")}
    if not of_split:
        raise _no_split(source, splits)
    return [path for path, name in zip(files, names, strict=True) if name and name["split"] in of_split]


def _saved_folder(source: HuggingFaceSource) -> Path | None:
    """The folder that save_to_disk made of the split, if it made one."""
    dictionary, state = source.path / "dataset_dict.json", source.path / "state.json"
    if dictionary.is_file():
        splits = _json(dictionary).get("splits")
        # A split's name is its folder's: it must not lead elsewhere.
        if not isinstance(splits, list) or not splits or not all(_is_name(split) for split in splits):
            raise DatasetError(f"{dictionary}: splits is no list of names: {str(splits)[:200]}")
        if source.split is None:
            _refuse_several(source.path, splits)
        elif source.split not in splits:
            raise _no_split(source, splits)
        return source.path / (source.split or splits[0])
    if not state.is_file():
        return None
    if source.split is not None and source.split != (saved := _json(state).get("_split")):
        raise _no_split(source, [saved] if isinstance(saved, str) else [])
    return source.path


def _refuse_several(path: Path, splits: Sequence[str]) -> None:
    if len(splits) > 1:
        raise DatasetError(f"{path}: has several splits, {', '.join(splits)[:500]}: name one as the source's split")


def _no_split(source: HuggingFaceSource, splits: Sequence[str]) -> DatasetError:
    there = f"it has {', '.join(splits)[:500]}" if splits else "its files name none, so leave split out"
    return DatasetError(f"{source.path}: no split {source.split!r}; {there}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value == Path(value).name and value not in ("", "..")


def _saved_names(folder: Path) -> list[str]:
    """Names of the files that state.json lists, in its order."""
    listed = _json(folder / "state.json").get("_data_files")
    listed = listed if isinstance(listed, list) else []
    names = [file.get("filename") if isinstance(file, dict) else None for file in listed]
    for name in names:
        # A name is joined to the folder by the library: it must not lead out of it.
        if not _is_name(name):
            raise DatasetError(f"{folder / 'state.json'}: {name!r} is no name of a file in the folder")
    if not names:
        raise DatasetError(f"{folder / 'state.json'}: _data_files names no file")
    return names


def _saved(folder: Path, columns: list[Column]) -> Iterator[pa.RecordBatch]:
    import datasets

    with _on_this_machine(folder, _saved_names(folder)) as place:
        try:
            dataset = datasets.Dataset.load_from_disk(str(place), keep_in_memory=False)
        except (KeyError, TypeError, AttributeError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise DatasetError(f"{folder}: state.json or dataset_info.json is broken: {detail[:500]}") from None
        names = columns_there(folder, dataset.data.schema, columns)
        for table in dataset.with_format("arrow").select_columns(names).iter(_BATCH_ROWS):
            yield from table.to_batches()


@contextmanager
def _on_this_machine(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folder of a saved dataset; of one in a bucket, a folder with links to the copies of its files."""
    if not isinstance(folder, S3Path):
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="m3po-dataset-") as links:
        for name in (*names, "state.json", "dataset_info.json"):
            Path(links, name).symlink_to(os.fspath(folder / name))
        yield Path(links)


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: can't be read: {error}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: expected an object")
    return value
