"""Reading some rows of a file."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.inspector import rows
from m3po_dagster.inspector.rows import read_rows


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "t.parquet"
    table = pa.table({"n": list(range(100)), "text": [f"text {n}" for n in range(100)]})
    pq.write_table(table, path, row_group_size=13)
    return path, table


@given(start=st.integers(0, 100), count=st.integers(0, 100), batch=st.integers(1, 40))
def test_the_rows_are_those_of_the_whole_table(file, start, count, batch):
    path, table = file
    count = min(count, 100 - start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_BATCH", batch)
        assert read_rows(path, start, count).equals(table.slice(start, count))
        assert read_rows(path, start, count, ["text", "absent"]).equals(table.select(["text"]).slice(start, count))


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (99, 2), (101, 0)])
def test_rows_that_are_not_there_are_refused(file, start, count):
    with pytest.raises(IndexError, match="has 100 rows"):
        read_rows(file[0], start, count)
