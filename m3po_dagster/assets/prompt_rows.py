"""A prompt's rows of a large table, as Python values only while they are looked at.

As Python values a shard's candidates take many times the memory of their Arrow columns: docs/scaling.md has figures.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class PromptRows(Sequence[dict]):
    """Adjacent rows of a table, read anew at each look."""

    def __init__(self, table: pa.Table, start: int, stop: int) -> None:
        self._table, self._start, self._stop = table, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        return self._read()[index]

    def __iter__(self) -> Iterator[dict]:
        return iter(self._read())

    def _read(self) -> list[dict]:
        return self._table.slice(self._start, len(self)).to_pylist()


def by_prompt(table: pa.Table) -> Iterator[tuple[str, PromptRows]]:
    """Each prompt id with its rows, in the table's order; the rows of a prompt are adjacent."""
    ids = table["prompt_id"]
    if not len(ids):
        return
    another = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    starts = np.append(0, np.flatnonzero(another) + 1)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)], strict=True):
        yield ids[start].as_py(), PromptRows(table, start, stop)
