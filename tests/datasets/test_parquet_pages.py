"""Files whose few bytes stand for many: what a dictionary repeats is read in bounded memory."""

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.arrow_files import MAX_REPEATED_BYTES, Column, batches_of, is_text
from m3po_dagster.datasets.parquet_pages import largest_dictionary
from m3po_dagster.datasets.record import DatasetError
from m3po_dagster.parquet_chunks import Chunk, column_chunks

COLUMNS = [Column("text", is_text, "text")]


def written(path, values, **how):
    """A file with a column of these texts, and a number for each."""
    pq.write_table(pa.table({"text": values, "number": list(range(len(values)))}), path, **how)
    return path


def dictionary_of(path, *columns) -> int | None:
    with path.open("rb") as file:
        return largest_dictionary(file, column_chunks(file)[0], set(columns))


def test_a_value_named_many_times_makes_no_large_batch(tmp_path):
    value, times = "x" * (4 << 20), 2000
    path = written(tmp_path / "bomb.parquet", pa.DictionaryArray.from_arrays([0] * times, [value]), compression="zstd")
    assert path.stat().st_size < 50_000
    rows = 0
    for _, batch in batches_of([path], COLUMNS):
        assert batch.num_rows * len(value) <= MAX_REPEATED_BYTES
        rows += batch.num_rows
        if rows > 200:
            return
    pytest.fail("it ended early")


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_it_is_as_large_as_its_values_and_their_lengths(tmp_path, compression, version):
    values = ["short", "a longer one", "short", "x" * 70_000]
    how = {"compression": compression, "data_page_version": version}
    path = written(tmp_path / "a.parquet", values, **how)
    assert dictionary_of(path, "text") == sum(4 + len(value) for value in set(values))
    assert dictionary_of(path, "number") == 8 * len(values)
    assert dictionary_of(path) == 0
    assert dictionary_of(written(tmp_path / "b.parquet", values, use_dictionary=False, **how), "text") == 0


def test_a_part_of_a_nested_column_counts(tmp_path):
    turns = [[{"from": "human", "value": "y" * 5000}]]
    pq.write_table(pa.table({"turns": turns}), tmp_path / "a.parquet")
    assert dictionary_of(tmp_path / "a.parquet", "turns") == 4 + 5000


def test_ordinary_rows_are_read_as_many_at_once_as_before(tmp_path):
    path = written(tmp_path / "a.parquet", [f"question {number}" for number in range(3000)])
    assert [batch.num_rows for _, batch in batches_of([path], COLUMNS)] == [1024, 1024, 952]


@given(st.binary(max_size=20))
def test_whatever_stands_where_a_header_should_be_is_read_or_unknown(header):
    found = largest_dictionary(io.BytesIO(header), [Chunk("text", 0, len(header))], {"text"})
    assert found is None or found >= 0


def test_where_nothing_is_known_rows_are_read_one_by_one(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", ["a", "b", "c"])
    monkeypatch.setattr("m3po_dagster.datasets.arrow_files.largest_dictionary", lambda *asked: None)
    assert [batch.num_rows for _, batch in batches_of([path], COLUMNS)] == [1, 1, 1]


def every_byte_of_its_end(path):
    """Reads the file with each byte of its list of contents raised by 16: a list one longer, a field four further."""
    content, read = path.read_bytes(), 0
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for at in range(start, len(content) - 8):
        path.write_bytes(content[:at] + bytes([(content[at] + 16) % 256]) + content[at + 1 :])
        try:
            read += sum(batch.num_rows for _, batch in batches_of([path], COLUMNS))
        except DatasetError as error:
            assert str(path) in str(error)
    return read


def test_damage_to_what_is_told_of_a_column_does_not_end_the_process(tmp_path):
    path = written(tmp_path / "a.parquet", ["a", None, "b"])
    # In a process of its own: pyarrow has ended it at a histogram of one entry more than there are levels.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        assert apart.submit(every_byte_of_its_end, path).result() > 0
