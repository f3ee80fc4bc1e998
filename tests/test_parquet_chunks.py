"""Where columns lie, against pyarrow; whatever is done to a file's end is an error, never the end of the process."""

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.parquet_chunks import column_chunks

ROWS = {"text": ["a", "b", "a", None], "turns": [[{"from": "human", "value": "hello"}]] * 4, "number": [1, 2, 3, 4]}


def written(**how) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(ROWS), file, **how)
    return file.getvalue()


def of_pyarrow(content: bytes) -> list[list[tuple[str, int, int]]]:
    metadata = pq.read_metadata(io.BytesIO(content))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [[group.column(number) for number in range(group.num_columns)] for group in groups]
    return [
        [
            (
                one.path_in_schema.partition(".")[0],
                one.dictionary_page_offset or one.data_page_offset,
                one.total_compressed_size,
            )
            for one in group
        ]
        for group in columns
    ]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_dictionary": False, "compression": "none"},
        {"row_group_size": 1, "data_page_version": "2.0", "compression": "zstd"},
        {"row_group_size": 3, "write_page_index": True, "write_page_checksum": True, "write_statistics": False},
        {"store_schema": False, "version": "1.0"},
    ],
)
def test_it_is_what_pyarrow_says(how):
    content = written(**how)
    found = column_chunks(io.BytesIO(content))
    assert found == of_pyarrow(content)
    assert {chunk.column for chunk in found[0]} == set(ROWS) and len(found[0]) == 4


def test_a_wide_file_of_many_groups(tmp_path):
    wide = pa.table({f"column {number}": list(range(40)) for number in range(60)})
    pq.write_table(wide, tmp_path / "a.parquet", row_group_size=2)
    content = (tmp_path / "a.parquet").read_bytes()
    assert column_chunks(io.BytesIO(content)) == of_pyarrow(content)


def test_no_rows_no_groups():
    file = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), file)
    assert column_chunks(file) == of_pyarrow(file.getvalue())


@given(st.binary(max_size=400))
@example(b"")
@example(b"\x49\x1c" * 60)  # a list of structs without end
@example(b"\x49" + b"\x19" * 300)  # a list of lists of lists
@example(b"\x46" + b"\xff" * 300)  # a number of 2,100 bits
@example(b"\x49\xfc\xff\xff\xff\xff\x0f")  # a list of four billion, of which there is none
@example(b"\x49\x18\xff\xff\xff\xff\x0f")  # four billion bytes, of which there is none
@example(b"\x49\x15\x02\x00")  # a list of numbers where structs should be
def test_any_end_is_read_or_refused(footer):
    content = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    try:
        column_chunks(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        assert "damaged" in str(error)


def test_columns_lie_in_the_file_and_bytes_changed_in_its_end_are_read_or_refused():
    content, changed = written(row_group_size=2), 0
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for seed in range(3000):
        draw, mangled = random.Random(seed), bytearray(content)
        for _ in range(draw.randint(1, 3)):
            mangled[draw.randrange(start, len(content) - 8)] = draw.randrange(256)
        try:
            for chunk in [chunk for group in column_chunks(io.BytesIO(mangled)) for chunk in group]:
                assert 0 <= chunk.first_page <= chunk.first_page + chunk.size <= len(content)
        except pa.ArrowInvalid:
            changed += 1
    assert 0 < changed < 3000


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\x7fPAR1", written()[:-1]])
def test_what_is_no_parquet_file_is_refused(content):
    with pytest.raises(pa.ArrowInvalid, match="no Parquet file, or a damaged one"):
        column_chunks(io.BytesIO(content))
