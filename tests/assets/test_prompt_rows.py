"""A prompt's rows: the same as of the whole table as Python values, and no more of it at a time."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.assets.prompt_rows import by_prompt


@given(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 5))
def test_rows_are_those_of_the_table_however_it_is_chunked(sizes, chunk):
    rows = [
        {"prompt_id": f"p{n}", "token_ids": [n, k], "text": f"{n}/{k}"}
        for n, size in enumerate(sizes)
        for k in range(size)
    ]
    whole = pa.Table.from_pylist(
        rows, schema=pa.schema({"prompt_id": "string", "token_ids": pa.list_(pa.int32()), "text": "string"})
    )
    table = pa.concat_tables([whole.slice(0, 0), *(whole.slice(start, chunk) for start in range(0, len(whole), chunk))])
    found = dict(by_prompt(table))
    assert {key: list(some) for key, some in found.items()} == {
        f"p{n}": [row for row in rows if row["prompt_id"] == f"p{n}"] for n, size in enumerate(sizes) if size
    }
    assert [row for some in found.values() for row in some] == rows
    assert all(len(some) == len(list(some)) and some[-1] == list(some)[-1] for some in found.values())


def test_a_look_at_a_prompt_reads_no_other_prompts_rows():
    read = []
    table = pa.table({"prompt_id": ["a"] * 3 + ["b"] * 2, "k": [0, 1, 2, 0, 1]})

    class Watched:
        """Notes the slices that are made Python values."""

        def slice(self, start, length):
            read.append((start, length))
            return table.slice(start, length)

        def __getitem__(self, name):
            return table[name]

    found = dict(by_prompt(Watched()))
    assert read == []
    assert [row["k"] for row in found["b"]] == [0, 1]
    assert read == [(3, 2)]
