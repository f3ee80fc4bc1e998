"""The index of a dataset: where each record's image lies, what it holds, and the shard the record belongs to."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from m3po_dagster.datasets import llava_instruct
from m3po_dagster.datasets.llava_instruct import DatasetSettings
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.image_files import ImageOutsideRoot, locate

READERS: dict[str, Callable[[Path], Iterator[Record | Malformed]]] = {"llava_instruct": llava_instruct.read}
"""Reader of each format."""

COLUMNS = ("record", "source_id", "image_uri", "image_sha256", "record_sha256", "shard")


def shard_names(shards: int) -> list[str]:
    """Names of the shards: s0, s1, ..."""
    return [f"s{number}" for number in range(shards)]


def read_records(settings: DatasetSettings) -> Iterator[Record | Malformed]:
    """The dataset's records in file order, through the reader of its format. Raises DatasetError for a broken file."""
    return READERS[settings.format](settings.path)


def index_dataset(
    settings: DatasetSettings,
    file_hash: Callable[[Path], str],
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """One row a record, malformed ones included: record, source_id, image_uri, image_sha256, record_sha256, shard.

    The shard is a hash of the image's content (of its path when the file can't be read, of the source id for a
    text-only or malformed record) modulo the number of shards: one image never sits in two shards, and a record added
    to the file moves no other. An image outside the image root is never opened. `file_hash` gives a file's sha256 and
    is asked once for each path; `progress` is told the records done and 0, their number being unknown.
    Raises DatasetError for a broken file, naming the position.
    """
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    hashes: dict[str, str | None] = {}
    for done, item in enumerate(read_records(settings), start=1):
        uri = sha256 = None
        if isinstance(item, Record) and item.image is not None:
            uri = str(PurePosixPath(item.image))
            if uri not in hashes:
                hashes[uri] = _image_hash(settings.image_root, uri, file_hash)
            sha256 = hashes[uri]
        key = f"image {sha256}" if sha256 else f"uri {uri}" if uri else f"id {item.source_id}"
        row = (item.record, item.source_id, uri, sha256, item.sha256, _shard(key, settings.shards))
        for name, value in zip(COLUMNS, row, strict=True):
            columns[name].append(value)
        if progress:
            progress(done, 0)
    kinds = {"record": pa.int64()}
    return pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in columns.items()})


def _image_hash(image_root: Path, uri: str, file_hash: Callable[[Path], str]) -> str | None:
    try:
        path = locate(image_root, uri)
        return file_hash(path) if path.is_file() else None
    except (ImageOutsideRoot, OSError):
        return None  # the filter names the reason when it drops the record


def _shard(key: str, shards: int) -> str:
    return f"s{int.from_bytes(hashlib.sha256(key.encode('utf-8')).digest()[:8], 'big') % shards}"
