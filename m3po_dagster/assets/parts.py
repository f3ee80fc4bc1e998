"""Long work in parts: each is on disk before the next begins, and a re-run keeps what an interrupted run left."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from m3po_dagster.materialise import Work

Item = TypeVar("Item")


def in_parts(
    work: Work,
    items: Sequence[Item],
    make: Callable[[Sequence[Item], Callable[[int, int], None]], pa.Table],
    schema: pa.Schema,
    what: str,
) -> pa.Table:
    """The rows `make` gives for all items, made and written `part_prompts` items at a time.

    `make` gets some items and a callback (done, total) over them. An item is a prompt, or a prompt with its candidates.
    """
    size = work.study.generation.part_prompts
    finished = set(work.draft.parts(plan={"part_prompts": size}))
    if finished:
        work.log(f"{what}: {len(finished)} parts of an interrupted run are kept")
    with work.progress(what, "prompt") as advance:
        for number, start in enumerate(range(0, len(items), size)):
            some = items[start : start + size]
            if number not in finished:
                rows = make(some, lambda done, _, start=start: advance(start + done, len(items)))
                work.draft.write_part(number, rows, schema)
            advance(start + len(some), len(items))
    return work.draft.read_parts() if items else schema.empty_table()
