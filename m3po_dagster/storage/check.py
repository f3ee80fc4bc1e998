"""Tables are checked against their schema before they are written, so that what is read back can be relied on."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.storage.errors import SchemaError
from m3po_dagster.storage.tables import TableSchema


def check(table: pa.Table, schema: TableSchema, asset: str | None = None) -> pa.Table:
    """`table` with its columns in the schema's order and described as there.

    Raises SchemaError that names the asset (the schema's name unless given), the column, and the first row and key
    at fault: missing or extra columns, other types, nulls where none are allowed, or a key that comes twice.
    """
    where = asset if asset in (None, schema.name) else f"{asset} ({schema.name})"
    where = where or schema.name
    wanted = schema.schema.names
    missing = [name for name in wanted if name not in table.column_names]
    extra = [name for name in table.column_names if name not in wanted]
    if missing or extra or table.num_columns != len(wanted):
        raise SchemaError(f"{where}: columns missing {missing}, extra {extra}, expected exactly {wanted}")
    table = table.select(wanted)
    for field in schema.schema:
        kind = table.schema.field(field.name).type
        if kind != field.type:
            raise SchemaError(f"{where}: column {field.name!r} is {kind}, expected {field.type}")
    for field in schema.schema:
        column = table.column(field.name)
        if column.null_count and (not field.nullable or field.name in schema.key):
            row = pc.index(pc.is_null(column), True).as_py()
            raise SchemaError(
                f"{where}: column {field.name!r} is null in row {row} {_key_text(table, schema, row)}: "
                f"{column.null_count} nulls in all, none allowed"
            )
    if schema.key:
        _check_keys(table, schema, where)
    return pa.Table.from_arrays(table.columns, schema=schema.schema)


def _check_keys(table: pa.Table, schema: TableSchema, where: str) -> None:
    keys = list(schema.key)
    rows = pa.array(np.arange(table.num_rows))
    numbered = table.select(keys).append_column("__row", rows)
    groups = numbered.group_by(keys).aggregate([("__row", "min"), ("__row", "count")])
    if groups.num_rows == table.num_rows:
        return
    repeated = groups.filter(pc.greater(groups["__row_count"], 1))
    first = pc.min(repeated["__row_min"]).as_py()
    times = repeated.filter(pc.equal(repeated["__row_min"], first))["__row_count"][0].as_py()
    raise SchemaError(
        f"{where}: key {_key_text(table, schema, first)} comes {times} times, first in row {first}; "
        f"{repeated.num_rows} keys come more than once"
    )


def _key_text(table: pa.Table, schema: TableSchema, row: int) -> str:
    return "(" + ", ".join(f"{name}={table.column(name)[row].as_py()!r}" for name in schema.key) + ")"
