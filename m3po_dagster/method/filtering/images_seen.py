"""The images of a whole dataset, as a shard must know them: where they stand, their bytes' hash, look and size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.method.filtering.row import SourceRow, is_usable

COLUMNS = ("source", "record", "image_name", "image_sha256", "width", "height", "phash", "image_problem")
_FACTS = ("image_sha256", "width", "height", "phash")


@dataclass(frozen=True)
class ImagesSeen:
    """Each usable image of a dataset once, in dataset order; all columns have one length.

    `source` (strings) and `record` (int64) name the first record with the image, `name` (strings, null where there is
    none) what it calls it, `sha256` (strings) its bytes, `width` and `height` (int64) its upright size in pixels,
    `phash` (uint64) its perceptual hash.
    """

    source: pa.Array
    record: np.ndarray
    name: pa.Array
    sha256: pa.Array
    width: np.ndarray
    height: np.ndarray
    phash: np.ndarray

    @classmethod
    def of(cls, table: pa.Table, sources: Sequence[str]) -> "ImagesSeen":
        """The usable images of the rows of all shards, in any order.

        `table` has source_dataset's columns, of which COLUMNS are read; `sources` are the names of the sources in the
        study's order, which with the record's position is the dataset's order. Raises ValueError for a row of another
        source.
        """
        usable = pc.is_null(table["image_problem"])
        for name in _FACTS:
            usable = pc.and_(usable, pc.is_valid(table[name]))
        rank = pc.index_in(table["source"], value_set=pa.array(sources, pa.string()))
        if rank.null_count:
            stranger = table["source"].filter(pc.is_null(rank))[0].as_py()
            raise ValueError(f"the dataset has a row of source {stranger!r}; the study's are {', '.join(sources)}")
        order = np.lexsort((table["record"].to_numpy(), rank.to_numpy()))
        order = order[usable.to_numpy()[order]]
        codes = table["image_sha256"].dictionary_encode().combine_chunks().indices.fill_null(-1).to_numpy()
        first_of_each = np.sort(np.unique(codes[order], return_index=True)[1])
        table = table.select(COLUMNS[:-1]).take(order[first_of_each])
        return cls(
            table["source"].combine_chunks(),
            table["record"].to_numpy(),
            table["image_name"].combine_chunks(),
            table["image_sha256"].combine_chunks(),
            table["width"].to_numpy().astype(np.int64),
            table["height"].to_numpy().astype(np.int64),
            table["phash"].to_numpy(),
        )

    @classmethod
    def of_rows(cls, rows: Iterable[SourceRow]) -> "ImagesSeen":
        """The usable images of these rows alone, which are in dataset order."""
        first: dict[str, SourceRow] = {}
        for row in rows:
            if is_usable(row.image):
                first.setdefault(row.image.sha256, row)
        images = [row.image for row in first.values()]
        return cls(
            pa.array([row.source for row in first.values()], pa.string()),
            np.array([row.record for row in first.values()], np.int64),
            pa.array([row.image_name for row in first.values()], pa.string()),
            pa.array(list(first), pa.string()),
            np.array([image.width for image in images], np.int64),
            np.array([image.height for image in images], np.int64),
            np.array([image.phash for image in images], np.uint64),
        )

    def positions(self, sha256: Sequence[str]) -> np.ndarray:
        """Where the images with these hashes stand, -1 for one that is not there."""
        return pc.index_in(pa.array(sha256, pa.string()), value_set=self.sha256).fill_null(-1).to_numpy()
