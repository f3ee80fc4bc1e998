import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.datasets.json_array import read_array
from m3po_dagster.datasets.record import DatasetError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(values, max_size=8), st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
@example([0.0, 1.5e300, -2e-07], 1, True, None)
def test_any_array_in_any_chunks_is_what_json_reads(tmp_path_factory, array, chunk, ascii_only, indent):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(array, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    assert list(read_array(path, chunk)) == array


def test_a_million_characters_in_a_record_take_no_million_parses(tmp_path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps(["x" * 1_000_000, 5]))
    assert [len(str(value)) for value in read_array(path, 1000)] == [1_000_000, 1]


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert list(read_array(path)) == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "character 0: expected a JSON array of records, found an empty file"),
        ('{"id": 1}\n{"id": 2}', "character 0: expected a JSON array of records, found a file that starts with '{'"),
        ("[1, 2", "character 5: expected ',' or ']' after record 1, found the end of the file"),
        ("[1 2]", "character 3: expected ',' or ']' after record 0, found '2'"),
        ("[1] [2]", "character 4: the array has ended, but '[' follows"),
        ("[1, ]", "character 4: record 1 is broken"),
        ('[1, {"a": "never closed', "character 10: record 1 is broken or cut short"),
        ('[1, {"a": 1', "character 11: record 1 is broken or cut short"),
        ("[" * 200_000, "record 0 can't be decoded"),
        ("[" + "7" * 5000 + "]", "record 0 can't be decoded"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_broken_file_is_named_with_the_position(tmp_path, content, said, chunk):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as error:
        list(read_array(path, chunk))
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_records_before_the_break_are_given_and_the_rest_of_the_file_is_not_read(tmp_path):
    path = tmp_path / "broken.json"
    not_even_utf8 = b"\xff"
    path.write_bytes(b'[1, 2, {"a" 3}' + b" " * 1_000_000 + not_even_utf8)
    reader = read_array(path, 100)
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(DatasetError, match="character 12: record 2 is broken"):
        next(reader)


def test_other_encodings_and_missing_files_are_errors_that_name_the_file(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('["caf\xe9"]'.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.json: not UTF-8"):
        list(read_array(path))
    with pytest.raises(DatasetError, match=r"none\.json: no such dataset file"):
        list(read_array(tmp_path / "none.json"))
    with pytest.raises(DatasetError, match="can't be read"):
        list(read_array(tmp_path))
