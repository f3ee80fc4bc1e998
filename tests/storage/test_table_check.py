"""Tables are refused with the column and the row that are at fault."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.storage.check import check
from m3po_dagster.storage.errors import SchemaError
from m3po_dagster.storage.tables import FILTERED_INSTRUCTIONS, SCORES, TableSchema, column

PLAIN = TableSchema(
    "plain",
    ("name", "k"),
    pa.schema(
        [
            column("name", pa.string(), "a name"),
            column("k", pa.int32(), "an index"),
            column("value", pa.float64(), "a value", nullable=True),
        ]
    ),
)


def plain(**columns) -> pa.Table:
    values = {"name": ["a", "a", "b"], "k": pa.array([0, 1, 0], pa.int32()), "value": [0.5, None, 1.0], **columns}
    return pa.table({name: value for name, value in values.items() if value is not None})


def test_a_good_table_gets_the_schema_and_its_descriptions():
    checked = check(plain().select(["value", "k", "name"]), PLAIN)
    assert checked.schema.equals(PLAIN.schema, check_metadata=True)
    assert checked.to_pylist() == plain().to_pylist()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (plain(value=None), r"plain: columns missing \['value'\]"),
        (plain(other=[1, 2, 3]), r"extra \['other'\]"),
        (plain(k=pa.array([0, 1, 0])), "column 'k' is int64, expected int32"),
        (plain(name=["a", None, "b"]), r"column 'name' is null in row 1 \(name=None, k=1\)"),
        (plain(name=["a", "b", "a"]), r"key \(name='a', k=0\) comes 2 times, first in row 0; 1 keys"),
        (pa.table([[1], [2]], names=["name", "name"]), "columns missing"),
    ],
)
def test_a_bad_table_is_refused(table, message):
    with pytest.raises(SchemaError, match=message):
        check(table, PLAIN)


def test_the_asset_is_named():
    with pytest.raises(SchemaError, match=r"^dropped_prompts \(plain\): "):
        check(plain(value=None), PLAIN, asset="dropped_prompts")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=8))
def test_keys_must_be_unique(keys):
    names, ks = [name for name, _ in keys], pa.array([k for _, k in keys], pa.int32())
    table = pa.table({"name": pa.array(names, pa.string()), "k": ks, "value": pa.nulls(len(keys), pa.float64())})
    repeated = [row for row, key in enumerate(keys) if keys.count(key) > 1]
    if not repeated:
        assert check(table, PLAIN).num_rows == len(keys)
    else:
        name, k = keys[repeated[0]]
        message = rf"\(name='{name}', k={k}\) comes {keys.count((name, k))} times, first in row {repeated[0]};"
        with pytest.raises(SchemaError, match=message):
            check(table, PLAIN)


@pytest.mark.parametrize("schema", [FILTERED_INSTRUCTIONS, SCORES])
def test_an_empty_table_of_the_graph_passes(schema):
    assert check(schema.schema.empty_table(), schema).num_rows == 0
    assert all(schema.describe().values())
