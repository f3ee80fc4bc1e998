"""`take`: which records a seeded subset has, whatever the file's order and whatever else a record says."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.datasets.subset import Subset, records_of
from tests.datasets.sources import FORMATS, IMAGE, MAX_RECORD_BYTES, PAIRS, source, write


def a_record(number: int, identity: str, text: str = "What?", own_id: bool = True, **more) -> Record:
    return Record(number, identity, "a.jpg", (("human", text),), f"sha of {text}", own_id=own_id, **more)


def taken(records, take: int, seed: int = 0) -> list[Record | Malformed]:
    return list(Subset.of(iter(records), take, seed).of_those(iter(records)))


@pytest.mark.parametrize("format", FORMATS)
def test_a_source_gives_what_it_takes_and_the_same_from_another_order(tmp_path, format):
    (tmp_path / "turned").mkdir()
    paths = [write(format, tmp_path), write(format, tmp_path / "turned", PAIRS[::-1])]
    one, other = (list(records_of(source(format, path, take=3), MAX_RECORD_BYTES)) for path in paths)
    assert len(one) == 3 and [item.record for item in one] == sorted(item.record for item in one)
    assert {item.source_id for item in one} == {item.source_id for item in other}
    assert len(list(records_of(source(format, paths[0]), MAX_RECORD_BYTES))) == len(PAIRS)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40), st.integers(1, 45), st.integers(0, 3))
def test_as_many_are_taken_whatever_ids_repeat_and_fewer_are_part_of_them(made, take, seed):
    records = [a_record(number, f"id{identity}", f"{text}?") for number, (identity, text) in enumerate(made)]
    found = taken(records, take, seed)
    assert len(found) == min(take, len(records))
    turned = taken(records[::-1], take, seed)
    assert sorted((r.source_id, r.sha256) for r in turned) == sorted((r.source_id, r.sha256) for r in found)
    fewer = taken(records, max(1, take - 1), seed)
    assert {r.record for r in fewer} <= {r.record for r in found}
    # All of an id are in, or all out, but for the one that the bound cuts.
    left_out = {r.source_id for r in records if r not in found}
    assert len({r.source_id for r in found} & left_out) <= 1


def test_what_a_record_says_beside_its_id_changes_nothing():
    records = [a_record(number, f"id{number}") for number in range(200)]
    corrected = [replace(record, sha256=f"another {record.record}") for record in records]
    found, again = taken(records, 50), taken(corrected, 50)
    assert len(found) == 50 and [r.source_id for r in found] == [r.source_id for r in again]
    assert [r.source_id for r in taken(records, 50, seed=1)] != [r.source_id for r in found]


def test_lines_without_an_id_are_taken_by_their_content(tmp_path):
    lines = [json.dumps({"image": "a.jpg", "question": f"What is {number}?"}) + "\n" for number in range(40)]
    asked = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(order))
        asked.append({item.conversation for item in records_of(source("jsonl", path, take=10), MAX_RECORD_BYTES)})
    assert len(asked[0]) == 10 and asked[0] == asked[1]


@pytest.mark.parametrize("format", ["huggingface", "rlaif_v"])
def test_rows_that_differ_in_nothing_but_their_image_are_told_apart(tmp_path, format):
    """No id, no name, one question: without the image's bytes the first ones of the file would be taken."""
    images = [b"\xff\xd8 %d" % number for number in range(40)]
    found = []
    for name, order in (("a", images), ("b", images[::-1])):
        (tmp_path / name).mkdir()
        columns = {"question": ["What is it?"] * 40, "chosen": ["A bus."] * 40}
        table = pa.table({"image": pa.array([{"bytes": data, "path": None} for data in order], IMAGE), **columns})
        pq.write_table(table, tmp_path / name / "data.parquet")
        no_id = {"id_column": None, "answer_column": "chosen"} if format == "huggingface" else {}
        asked = source(format, tmp_path / name, take=10, **no_id)
        found.append({item.image_bytes for item in records_of(asked, MAX_RECORD_BYTES)})
    assert len(found[0]) == 10 and found[0] == found[1] != set(images[:10])


def test_malformed_records_are_beside_those_that_are_taken():
    bad = Malformed(0, "#0", "sha", "id is missing")
    assert taken([bad, *(a_record(number, f"id{number}") for number in range(1, 9))], 3)[0] == bad
    assert len(taken([bad] * 5, 3)) == 5
