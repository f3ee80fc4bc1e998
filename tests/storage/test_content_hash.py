"""The content hash: blind to layout, sensitive to content."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.storage import content
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.tables import MESSAGES

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
CELLS = {
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.string(): texts,
    pa.binary(): st.binary(max_size=6),
    pa.timestamp("us"): st.integers(0, 2**50),
    pa.list_(pa.int32()): st.lists(st.none() | st.integers(0, 9), max_size=4),
    pa.list_(pa.float64(), 2): st.lists(st.none() | st.floats(), min_size=2, max_size=2),
    pa.struct([("a", pa.int16()), ("b", pa.string())]): st.fixed_dictionaries(
        {"a": st.none() | st.integers(0, 9), "b": st.none() | texts}
    ),
    MESSAGES: st.lists(st.none() | st.fixed_dictionaries({"role": texts, "text": st.none() | texts}), max_size=3),
}


@st.composite
def tables(draw, min_rows: int = 0) -> pa.Table:
    rows = draw(st.integers(min_rows, 9))
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=4))
    columns = [pa.array(draw(st.lists(st.none() | CELLS[kind], min_size=rows, max_size=rows)), kind) for kind in kinds]
    return pa.table(columns, names=[f"c{index}" for index in range(len(kinds))])


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of four rows, so that tables of nine cross their borders."""
    patch = pytest.MonkeyPatch()
    patch.setattr(content, "_BLOCK", 4)
    yield
    patch.undo()


def said(table: pa.Table) -> str:
    """What a table says, as text: the oracle. One NaN for all, -0.0 apart from 0.0."""
    return repr([(field.name, str(field.type)) for field in table.schema]) + repr(
        [column.to_pylist() for column in table.columns]
    )


@given(tables(), st.data())
def test_chunks_and_slices_leave_no_trace(table, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, table.num_rows), max_size=4)))
    pieces = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, table.num_rows], strict=True)]
    fresh = [pa.table([pa.array(c.to_pylist(), c.type) for c in p.columns], names=table.column_names) for p in pieces]
    assert table_hash(pa.concat_tables(pieces)) == table_hash(table)
    assert table_hash(pa.concat_tables(fresh)) == table_hash(table)
    padded = pa.concat_tables([table, table, table]).combine_chunks()
    assert table_hash(padded.slice(table.num_rows, table.num_rows)) == table_hash(table)


@settings(max_examples=60)
@given(tables(), st.sampled_from(["zstd", "snappy", "none"]), st.booleans(), st.sampled_from(["1.0", "2.0"]))
def test_parquet_leaves_no_trace(table, compression, dictionary, pages):
    sink = pa.BufferOutputStream()
    options = {"compression": compression, "use_dictionary": dictionary, "data_page_version": pages}
    pq.write_table(table, sink, row_group_size=3, **options)
    assert table_hash(pq.ParquetFile(pa.BufferReader(sink.getvalue())).read()) == table_hash(table)


@given(st.lists(st.none() | texts, max_size=9), st.lists(st.none() | st.binary(max_size=4), max_size=9))
def test_encodings_of_text_leave_no_trace(words, blobs):
    plain = table_hash(pa.table({"t": pa.array(words, pa.string())}))
    encoded = pa.chunked_array(
        [pa.array(words[:3], pa.string()).dictionary_encode()]
        + ([pa.array(words[3:], pa.string()).dictionary_encode()] if words[3:] else [])
    )
    others = [pa.array(words, pa.large_string()), pa.array(words, pa.string_view()), encoded]
    assert {table_hash(pa.table({"t": other})) for other in others} == {plain}
    assert table_hash(pa.table({"t": pa.array(blobs, pa.large_binary())})) == table_hash(
        pa.table({"t": pa.array(blobs, pa.binary())})
    )


@given(tables(), tables())
def test_equal_hashes_mean_equal_content(one, other):
    assert (table_hash(one) == table_hash(other)) == (said(one) == said(other))


@settings(max_examples=150)
@given(tables(min_rows=1), st.data())
def test_one_changed_cell_changes_the_hash(table, data):
    column = data.draw(st.integers(0, table.num_columns - 1))
    row = data.draw(st.integers(0, table.num_rows - 1))
    kind = table.schema.field(column).type
    cells = table.column(column).to_pylist()
    cells[row] = data.draw(st.none() | CELLS[kind])
    changed = table.set_column(column, table.column_names[column], pa.array(cells, kind))
    assert (table_hash(changed) == table_hash(table)) == (said(changed) == said(table))


@given(tables(min_rows=2), st.randoms())
def test_the_order_of_rows_counts(table, random):
    order = list(range(table.num_rows))
    random.shuffle(order)
    mixed = table.take(order)
    assert (table_hash(mixed) == table_hash(table)) == (said(mixed) == said(table))


def test_names_types_and_column_order_count():
    base = pa.table({"a": pa.array([1, 2], pa.int32()), "b": pa.array([1, 2], pa.int32())})
    others = [
        base.rename_columns(["a", "c"]),
        base.rename_columns(["b", "a"]),
        base.cast(pa.schema([("a", pa.int64()), ("b", pa.int32())])),
        base.cast(pa.schema([("a", pa.float32()), ("b", pa.int32())])),
        base.select(["a"]),
        base.slice(0, 1),
        base.slice(0, 0),
        pa.table({"a": pa.nulls(2), "b": pa.nulls(2)}),
    ]
    hashes = [table_hash(table) for table in (base, *others)]
    assert len(set(hashes)) == len(hashes)


def test_text_does_not_leak_from_row_to_row():
    cells = [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"], [None, "abc"], ["abc", None]]
    hashes = {table_hash(pa.table({"t": pa.array(pair, pa.string())})) for pair in cells}
    lists = [[["a"], ["b"]], [["a", "b"], []], [[], ["a", "b"]], [None, ["a", "b"]], [["a", None], ["b"]]]
    hashes |= {table_hash(pa.table({"t": pa.array(pair, pa.list_(pa.string()))})) for pair in lists}
    assert len(hashes) == len(cells) + len(lists)


def test_nothing_under_a_null_counts_and_every_nan_is_one():
    bitmap = pa.py_buffer(bytes([0b101]))
    arrays = [
        pa.Array.from_buffers(pa.int64(), 3, [bitmap, pa.py_buffer(np.array([1, stray, 3]))]) for stray in (0, 77)
    ]
    assert len({table_hash(pa.table({"x": array})) for array in arrays}) == 1
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], np.int32))
    text = pa.Array.from_buffers(pa.string(), 3, [bitmap, offsets, pa.py_buffer(b"axxb")])
    assert table_hash(pa.table({"x": text})) == table_hash(pa.table({"x": ["a", None, "b"]}))
    payloads = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    assert table_hash(pa.table({"x": payloads})) == table_hash(pa.table({"x": [math.nan, math.nan]}))
    assert table_hash(pa.table({"x": [-0.0]})) != table_hash(pa.table({"x": [0.0]}))


def test_columns_without_a_content_hash_are_refused_by_name():
    odd = pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32()))})
    with pytest.raises(TypeError, match="'m'"):
        table_hash(odd)


def test_the_hash_never_changes_between_versions(monkeypatch):
    """A different value here makes every data version of every store a stranger."""
    monkeypatch.setattr(content, "_BLOCK", 1 << 16)
    rows = 70_000
    table = pa.table(
        {
            "id": [f"{row % 7}:{row}" for row in range(rows)],
            "logp": pa.array([None if row % 5 == 0 else -row / 8 for row in range(rows)]),
            "ids": pa.array([[row, 1] if row % 3 else None for row in range(rows)], pa.list_(pa.int32())),
        }
    )
    assert table_hash(table) == "2537e93a298690ca28f088c3cd88185b350e16aa9a8fb7bbd3a54fcc94f64353"
