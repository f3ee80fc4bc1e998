"""The reader of each format: records of a source as a stream, whatever its files are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.datasets import huggingface, jsonl, llava_instruct, rlaif_v, webdataset
from m3po_dagster.datasets.files import files_of, one_file
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.datasets.settings import AnySource, SourceSettings


@dataclass(frozen=True)
class Reader:
    """How a format is read: which files a source consists of, and their records; `name` is what a person calls it."""

    name: str
    files: Callable[[SourceSettings], list[Path]]
    read: Callable[[SourceSettings, int], Iterator[Record | Malformed]]


def _json_array(name: str) -> Reader:
    return Reader(
        name=name,
        files=lambda source: one_file(source.path),
        read=lambda source, max_record_bytes: llava_instruct.read(source.path, max_record_bytes),
    )


READERS: dict[str, Reader] = {
    "llava_instruct": _json_array("a JSON array in LLaVA-Instruct's layout"),
    "sharegpt4v": _json_array("a JSON array in ShareGPT4V's layout"),
    "jsonl": Reader(
        name="JSON lines",
        files=lambda source: one_file(source.path),
        read=lambda source, max_record_bytes: jsonl.read(source.path, max_record_bytes),
    ),
    "rlaif_v": Reader(
        name="Parquet in RLAIF-V's columns",
        files=lambda source: files_of(source.path, (".parquet",)),
        read=lambda source, max_record_bytes: rlaif_v.read(files_of(source.path, (".parquet",)), max_record_bytes),
    ),
    "huggingface": Reader(name="a Hugging Face dataset on disk", files=huggingface.source_files, read=huggingface.read),
    "webdataset": Reader(
        name="WebDataset tar shards",
        files=lambda source: files_of(source.path, (".tar",)),
        read=lambda source, max_record_bytes: webdataset.read(files_of(source.path, (".tar",)), max_record_bytes),
    ),
}
"""Reader of each format."""


def read_source(source: AnySource, max_record_bytes: int) -> Iterator[Record | Malformed]:
    """The source's records in order, malformed ones included, counted from 0 over all its files.

    Memory holds one record, of at most `max_record_bytes` of text and an image, or a few. No image is opened and no
    path from the data is followed. Raises DatasetError for a broken file, naming file, record and position.
    """
    return READERS[source.format].read(source, max_record_bytes)


def source_files(source: AnySource) -> list[Path]:
    """The files whose bytes are the dataset, in the order they are read. Raises DatasetError where there is none."""
    return READERS[source.format].files(source)
