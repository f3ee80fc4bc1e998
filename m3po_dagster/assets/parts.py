"""Long work in parts: what is finished is on disk within about `part_seconds`, and a re-run asks only for the rest."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.materialise import Work
from m3po_dagster.storage.draft import ROW_GROUP, Draft

Item = TypeVar("Item")
Rows = list[dict]
"""The rows of one or several prompts, each complete: they come into one part together."""

PLAN = {"rows": "of whole prompts, in any order; the last part that names a prompt counts"}
AGAIN = "asked_again"
PART = "part"


def in_parts(
    work: Work,
    items: Mapping[str, Item],
    make: Callable[[Sequence[Item]], Iterator[Rows]],
    schema: pa.Schema,
    what: str,
    again: Callable[[pa.Table], Sequence[str]] = lambda kept: (),
    together: int = 1,
) -> pa.Table:
    """The rows of all items in the items' order, whatever parts they came in.

    `items` goes by prompt id: a prompt, or a prompt with its candidates. `make` gets those without rows yet and gives
    rows as they are done, in any order; each has a prompt_id. `again` sees the rows of an interrupted run and names the
    prompts whose rows don't count. `together`: as many items as `make` computes at once, in their order, come into one
    part: so a resumed run computes the same ones together, and rounds as an undisturbed run does.
    """
    stored = _part_schema(schema)
    kept = _whole(work.draft, stored)
    asked_again = again(_last(kept, list(items)).select(schema.names))
    writer = PartWriter(work.draft, stored, work.study.generation.part_seconds)
    if asked_again:
        # At once, so that a kill while they are asked leaves the rest of them to be asked, not to be kept.
        writer.add([{"prompt_id": prompt_id, AGAIN: True} for prompt_id in asked_again])
        writer.flush()
    done = set(_last(kept, list(items))["prompt_id"].unique().to_pylist()) - set(asked_again)
    if done:
        work.log(f"{what}: {len(done)} prompts of an interrupted run are kept")
    with work.progress(what, "prompt") as advance, writer:
        advance(len(done), len(items))
        finished: list[Rows] = []
        try:
            for rows in make([item for prompt_id, item in items.items() if prompt_id not in done]):
                finished.append(rows)
                done |= {row["prompt_id"] for row in rows}
                if len(finished) == together:
                    writer.add([row for some in finished for row in some])
                    finished.clear()
                advance(len(done), len(items))
        finally:
            writer.add([row for some in finished for row in some])
    return _last(_whole(work.draft, stored), list(items)).select(schema.names).cast(schema)


class PartWriter:
    """Writes what was added into the draft's next part every `seconds`, and on leaving, an error or not.

    In a thread of its own: results come in bursts, and what one burst brought must not wait for the next.
    """

    def __init__(self, draft: Draft, schema: pa.Schema, seconds: float) -> None:
        self._draft, self._schema, self._seconds = draft, schema, seconds
        self._next = max(draft.parts(PLAN), default=-1) + 1
        self._rows: Rows = []
        self._lock, self._end = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._writing: Future[None] | None = None

    def add(self, rows: Rows) -> None:
        """Takes in rows. Raises what an earlier part could not be written for."""
        if self._writing and self._writing.done():
            self._writing.result()
        with self._lock:
            self._rows += rows

    def flush(self) -> None:
        """Writes what was added as a part; nothing when there is nothing. Raises StoreError."""
        with self._lock:
            rows, self._rows = self._rows, []
        if rows:
            self._draft.write_part(self._next, pa.Table.from_pylist(rows, schema=self._schema), self._schema)
            self._next += 1

    def _keep_writing(self) -> None:
        while not self._end.wait(self._seconds):
            self.flush()

    def __enter__(self) -> "PartWriter":
        self._writing = self._pool.submit(self._keep_writing)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._pool.shutdown()
        self._writing.result()
        self.flush()


def _part_schema(schema: pa.Schema) -> pa.Schema:
    """A part's rows: as asked for, or a prompt whose earlier rows don't count."""
    return pa.schema([*(field.with_nullable(True) for field in schema), (AGAIN, pa.bool_())])


def _whole(draft: Draft, stored: pa.Schema) -> pa.Table:
    """The rows of all whole parts with the number of their part."""
    parts = [
        table.append_column(PART, pa.array(np.full(len(table), number, dtype=np.int32)))
        for number in draft.parts(PLAN)
        for table in [draft.read_part(number)]
    ]
    return pa.concat_tables([stored.append(pa.field(PART, pa.int32())).empty_table(), *parts])


def _last(rows: pa.Table, prompt_ids: list[str]) -> pa.Table:
    """Of each prompt the rows of the last part that names it, in the order of the prompts."""
    place = pc.index_in(rows["prompt_id"], value_set=pa.array(prompt_ids, pa.string())).to_numpy()
    part = rows[PART].to_numpy()
    last = np.full(len(prompt_ids), -1)
    np.maximum.at(last, place, part)
    counts = (part == last[place]) & ~rows[AGAIN].fill_null(False).to_numpy()
    chosen = np.flatnonzero(counts)
    return _in_order(rows, chosen[np.argsort(place[chosen], kind="stable")])


def _in_order(rows: pa.Table, order: np.ndarray) -> pa.Table:
    """These rows in this order. A shard's texts may be over 2 GiB together, where an array with short offsets ends."""
    # Laid together once, for a take from many chunks lays them all together each time; the cast copies offsets alone.
    wide = rows.cast(pa.schema([field.with_type(_wide(field.type)) for field in rows.schema])).combine_chunks()
    blocks = (order[start : start + ROW_GROUP] for start in range(0, len(order), ROW_GROUP))
    taken = [wide.take(pa.array(block)).cast(rows.schema) for block in blocks]
    return pa.concat_tables([rows.schema.empty_table(), *taken])


def _wide(kind: pa.DataType) -> pa.DataType:
    """The type with offsets of 64 bits, where it has any."""
    if pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_list(kind.value_field) if pa.types.is_list(kind) else kind
