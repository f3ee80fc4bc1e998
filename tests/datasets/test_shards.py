"""A shard's file holds its rows in their order, whatever the pace at which they were written."""

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets import shards
from m3po_dagster.datasets.index import shard_names, shard_of
from m3po_dagster.datasets.row import IMAGE_MISSING, ROWS, ImageFacts, SourceRow
from m3po_dagster.datasets.shards import columns_of, read_shard, write_shards


def row(number: int, picture: int | None = None, text: str = "Why?", **changes) -> SourceRow:
    facts = ImageFacts() if picture is None else ImageFacts(f"{picture:064x}", 4, 3, 2**64 - 1 - picture)
    uri = None if picture is None else f"{picture}.png"
    fields = {"refused": None, "conversation": (("human", text),), "image_name": uri, "image_uri": uri, "image": facts}
    return SourceRow("toy", number, f"id{number}", f"{number:064x}", **{**fields, **changes})


rows_in_order = st.lists(st.tuples(st.none() | st.integers(0, 5), st.text(max_size=20)), max_size=60).map(
    lambda found: [row(number, image, text) for number, (image, text) in enumerate(found)]
)


@given(rows_in_order, st.integers(1, 9), st.integers(1, 40))
def test_what_is_written_is_read_back_in_order(tmp_path_factory, rows, count, held):
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_HELD", held)
        counted = write_shards(iter(rows), folder, count)
    read = {name: list(read_shard(folder / f"{name}.parquet")) for name in shard_names(count)}
    assert read == {name: [one for one in rows if shard_of(one, count) == name] for name in shard_names(count)}
    assert {name: found["records"] for name, found in counted.items()} == {k: len(v) for k, v in read.items()}
    images = {one.image.sha256 for one in rows if one.image.sha256}
    assert sum(found["images"] for found in counted.values()) == len(images)


def test_counts_tell_what_can_be_used(tmp_path):
    missing = ImageFacts(problem=IMAGE_MISSING, detail="no file")
    rows = [row(0, 1), row(1, 1), row(2), row(3, image_uri="x", image=missing)]
    rows.append(row(4, refused="id is missing", conversation=None))
    (counted,) = write_shards(rows, tmp_path, 1).values()
    assert counted == {"records": 5, "refused": 1, "text_only": 1, "image_problems": 1, "images": 1}


def test_few_rows_wait_in_memory_and_long_ones_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_HELD", 16)
    write_shards((row(number) for number in range(160)), tmp_path, 1)
    assert pq.ParquetFile(tmp_path / "s0.parquet").num_row_groups == 10
    long = "x" * (shards.TEXT_HELD // 2)
    write_shards((row(number, text=long) for number in range(8)), tmp_path, 1)
    assert pq.ParquetFile(tmp_path / "s0.parquet").num_row_groups == 4


def test_columns_of_all_shards_and_of_none(tmp_path):
    write_shards((row(number, number) for number in range(20)), tmp_path, 3)
    table = columns_of([tmp_path / f"{name}.parquet" for name in shard_names(3)], ["record", "phash"])
    assert sorted(table["record"].to_pylist()) == list(range(20))
    assert columns_of([], ["phash"]).schema.field("phash").type == ROWS.field("phash").type


@pytest.mark.parametrize("where", ["in the rows", "in writing", "in closing"])
def test_no_file_stays_open_after_an_error(tmp_path, monkeypatch, where):
    monkeypatch.setattr(shards, "ROWS_HELD", 4)
    writers = []

    class Writer(pq.ParquetWriter):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            writers.append(self)

        def write_table(self, table, *rest):
            if where == "in writing" and len(writers) == 4:
                raise OSError("no space left")
            super().write_table(table, *rest)

        def close(self):
            broken = where == "in closing" and self.is_open and self is writers[0]
            super().close()
            if broken:
                raise OSError("no space left")

    monkeypatch.setattr(shards.pq, "ParquetWriter", Writer)

    def rows():
        yield from (row(number) for number in range(40))
        if where == "in the rows":
            raise OSError("the dataset's disk is gone")

    with pytest.raises(OSError, match="disk is gone" if where == "in the rows" else "no space left"):
        write_shards(rows(), tmp_path, 4)
    assert len(writers) == 4 and not any(writer.is_open for writer in writers)
