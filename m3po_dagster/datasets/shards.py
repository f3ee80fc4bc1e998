"""The rows of a dataset as one Parquet file a shard, written and read a block at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3po_dagster.datasets.index import shard_names, shard_of
from m3po_dagster.datasets.row import ROWS, SourceRow

ROWS_HELD = 16_384
"""Rows that wait in memory to be written, over all shards."""
TEXT_HELD = 1 << 20
"""Characters that wait in one shard before they are written, however few rows they are."""

COUNTED = ("records", "refused", "text_only", "image_problems", "images")
Counts = dict[str, int]


@dataclass
class _Shard:
    path: Path
    waiting: list[dict] = field(default_factory=list)
    characters: int = 0
    writer: pq.ParquetWriter | None = None
    counts: Counts = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def add(self, row: SourceRow) -> None:
        self.waiting.append(row.to_dict())
        self.characters += sum(len(text) for _, text in row.conversation or ())
        counts = self.counts
        counts["records"] += 1
        counts["refused"] += row.refused is not None
        counts["text_only"] += row.refused is None and row.image_uri is None
        counts["image_problems"] += row.image.problem is not None

    def flush(self) -> None:
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, ROWS, compression="zstd", compression_level=3)
        self.writer.write_table(pa.Table.from_pylist(self.waiting, ROWS))
        self.waiting, self.characters = [], 0

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def finish(self) -> None:
        if self.waiting or self.writer is None:
            self.flush()
        self.close()
        # Now, one shard at a time: a set of all images would grow with the dataset.
        usable = columns_of([self.path], ["image_sha256", "width"])
        self.counts["images"] = pc.count_distinct(usable.filter(usable["width"].is_valid())["image_sha256"]).as_py()


def write_shards(rows: Iterable[SourceRow], folder: Path, shards: int) -> dict[str, Counts]:
    """Writes every shard's rows, in their order, to `folder`/<shard>.parquet.

    Gives for each shard its records, how many the reader refused, how many are text only, its distinct usable images,
    and how many records' images are no good. Raises OSError when a file can't be written. Whatever is raised, also by
    `rows`, no file is left open.
    """
    files = {name: _Shard(folder / f"{name}.parquet") for name in shard_names(shards)}
    held = max(1, ROWS_HELD // shards)
    with ExitStack() as opened:
        for shard in files.values():
            opened.callback(shard.close)
        for row in rows:
            shard = files[shard_of(row, shards)]
            shard.add(row)
            if len(shard.waiting) >= held or shard.characters >= TEXT_HELD:
                shard.flush()
        for shard in files.values():
            shard.finish()
    return {name: shard.counts for name, shard in files.items()}


def read_shard(path: Path) -> Iterator[SourceRow]:
    """The rows of one shard's file, a row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield SourceRow.from_dict(row)


def columns_of(paths: Iterable[Path], columns: Sequence[str]) -> pa.Table:
    """Some columns of several shards' files as one table, shard by shard."""
    tables = [pq.read_table(path, columns=list(columns)) for path in paths]
    return pa.concat_tables(tables) if tables else ROWS.empty_table().select(list(columns))
