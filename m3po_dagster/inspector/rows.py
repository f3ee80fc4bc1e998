"""Some rows of a Parquet file without reading the rest: one prompt's texts out of millions."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH = 1024


def read_rows(path: Path, start: int, count: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows `start` to `start + count` of a file, of its columns those of `columns` that it has.

    Reads the row groups that hold them, from their beginning to the last wanted row. Raises OSError or
    pa.ArrowException for a file that can't be read, IndexError for rows it does not have.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        metadata = file.metadata
        if start < 0 or start + count > metadata.num_rows:
            raise IndexError(f"{path} has {metadata.num_rows} rows: no rows {start} to {start + count}")
        names = file.schema_arrow.names
        wanted = names if columns is None else [name for name in columns if name in names]
        groups, begin, first = [], 0, 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if begin + rows > start and begin < start + count:
                if not groups:
                    first = begin
                groups.append(group)
            begin += rows
        found, passed = [], first
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=wanted) if groups else ():
            low, high = max(start - passed, 0), min(start + count - passed, len(batch))
            if low < high:
                found.append(batch.slice(low, high - low))
            passed += len(batch)
            if passed >= start + count:
                break
        schema = pa.schema([file.schema_arrow.field(name) for name in wanted])
        return pa.Table.from_batches(found, schema=schema)
