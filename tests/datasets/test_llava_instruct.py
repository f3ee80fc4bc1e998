import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.llava_instruct import read
from m3po_dagster.datasets.record import Malformed, Record

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]


def write(path, records):
    path.write_text(json.dumps(records))
    return path


def test_a_published_record_comes_back_as_it_stands(tmp_path):
    raw = {"id": "000000033471", "image": "000000033471.jpg", "conversations": TURNS, "model": "ignored"}
    (record,) = read(write(tmp_path / "a.json", [raw]))
    conversation = (("human", "<image>\nWhat is it?"), ("gpt", "A bus."))
    assert record == Record(0, "000000033471", "000000033471.jpg", conversation, record.sha256)


@pytest.mark.parametrize("text_only", [{}, {"image": None}])
def test_text_only_records_have_no_image(tmp_path, text_only):
    (record,) = read(write(tmp_path / "a.json", [{"id": 7, "conversations": TURNS, **text_only}]))
    assert (record.source_id, record.image) == ("7", None)


def test_the_hash_follows_the_content_and_not_the_layout(tmp_path):
    raw = {"id": "1", "image": "1.jpg", "conversations": TURNS}
    turned = dict(reversed(raw.items()))
    (tmp_path / "b.json").write_text(json.dumps([turned], indent=4, ensure_ascii=False))
    (one,) = read(write(tmp_path / "a.json", [raw]))
    (other,) = read(tmp_path / "b.json")
    (changed,) = read(write(tmp_path / "c.json", [raw | {"image": "2.jpg"}]))
    assert one.sha256 == other.sha256 != changed.sha256


GOOD = {"id": "1", "image": "1.jpg", "conversations": TURNS}


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        ("text", "a record is an object, this is a string"),
        ([], "a record is an object, this is an array"),
        (None, "this is null"),
        ({"id": "1"}, "conversations is missing"),
        ({"conversations": TURNS}, "id is missing"),
        (GOOD | {"id": float("nan")}, "id is the number nan"),
        (GOOD | {"id": True}, "id is a boolean"),
        (GOOD | {"id": ""}, "id has 0 characters"),
        (GOOD | {"id": "x" * 1_000_000}, "id has 1000000 characters"),
        (GOOD | {"image": ["1.jpg", "2.jpg"]}, "image is an array of 2, expected a string: a record has one image"),
        (GOOD | {"image": 3}, "image is the number 3"),
        (GOOD | {"image": ""}, "image is empty"),
        (GOOD | {"image": None, "images": ["a.jpg", "b.jpg"]}, "images is an array of 2, and image is missing"),
        (GOOD | {"image": "a\0.jpg"}, "image holds a NUL character"),
        (GOOD | {"conversations": {}}, "conversations is an object"),
        (GOOD | {"conversations": []}, "conversations is empty"),
        (GOOD | {"conversations": ["hi"]}, "conversations[0] is a string"),
        (GOOD | {"conversations": [TURNS[0], {"from": "gpt"}]}, "conversations[1].value is missing"),
        (GOOD | {"conversations": [{"value": "x"}]}, "conversations[0].from is missing"),
        (GOOD | {"conversations": [{"from": "system", "value": "x"}]}, "conversations[0].from is 'system'"),
        (GOOD | {"conversations": [{"from": "human", "value": None}]}, "conversations[0].value is null"),
        (GOOD | {"conversations": [{"from": "human", "value": "a\0b"}]}, "conversations[0].value holds a NUL"),
        (
            GOOD | {"conversations": [{"from": "human", "value": "\ud83d"}]},
            "conversations[0].value holds half a surrogate",
        ),
    ],
)
def test_a_malformed_record_is_named_and_the_next_is_read(tmp_path, raw, detail):
    bad, good = read(write(tmp_path / "a.json", [raw, GOOD]))
    assert isinstance(bad, Malformed)
    assert detail in bad.detail
    assert (bad.record, bad.reason, good.record, good.source_id) == (0, "malformed record", 1, "1")
    pa.array([bad.source_id, bad.detail, bad.sha256])  # UTF-8 throughout


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "image", "from", "value"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "image", "conversations"), json_values)), max_size=5
    )
)
def test_whatever_a_record_holds_each_gives_one_item(tmp_path_factory, raws):
    items = list(read(write(tmp_path_factory.mktemp("any") / "a.json", raws)))
    assert [item.record for item in items] == list(range(len(raws)))
    pa.array([item.source_id for item in items])
