import hashlib
import json

import ijson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m3po_dagster.datasets.json_array import read_array
from m3po_dagster.datasets.json_text import MAX_DEPTH, Unreadable
from m3po_dagster.datasets.record import DatasetError

LIMIT = 1 << 22

texts = st.text(st.characters(codec="utf-8"))
# What ijson reads: with floats it takes no whole number of more than 64 bits, and never Python's Infinity.
numbers = st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(values, max_size=8), st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
@example([0.0, 1.5e300, -2e-07], 1, True, None)
def test_any_array_in_any_chunks_is_what_json_and_ijson_read(tmp_path_factory, array, chunk, ascii_only, indent):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(array, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    assert list(read_array(path, LIMIT, chunk)) == array
    with path.open("rb") as file:
        assert list(ijson.items(file, "item", use_float=True)) == array


def test_a_million_characters_in_a_record_take_no_million_parses(tmp_path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps(["x" * 1_000_000, 5]))
    assert [len(str(value)) for value in read_array(path, LIMIT, 1000)] == [1_000_000, 1]


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert list(read_array(path, LIMIT)) == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "character 0: expected a JSON array of records, found an empty file"),
        ('{"id": 1}\n{"id": 2}', "character 0: expected a JSON array of records, found a file that starts with '{'"),
        ("[1, 2", "character 5: expected ',' or ']' after record 1, found the end of the file"),
        ("[1 2]", "character 3: expected ',' or ']' after record 0, found '2'"),
        ("[1] [2]", "character 4: the array has ended, but '[' follows"),
        ("[1, ]", "character 4: record 1 is broken"),
        ('[1, {"a": "never closed', "character 10: record 1 is broken or cut short: Unterminated string;"),
        ('[1, {"a": "never closed}, {"b": "c"}]', "character 28: record 1 is broken or cut short: Expecting ','"),
        ('[1, {"a": 1', "character 11: record 1 is broken or cut short"),
        ("[" * 200_000, "character 200000: record 0 is broken or cut short: Brackets without an end"),
        ("[1, " + "7" * 5000, "character 5004: expected ',' or ']' after record 1, found the end of the file"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_broken_file_is_named_with_the_position(tmp_path, content, said, chunk):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as error:
        list(read_array(path, LIMIT, chunk))
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[" * 5000 + "]" * 5000, "nested more than 100 deep"),
        ('{"a":' * 5000 + '"]}\\"" ' + "}" * 5000, "nested more than 100 deep"),
        ("7" * 100_000, "a number can't be read: Exceeds the limit"),
        ('{"id": -' + "7" * 100_000 + ', "b": "}\\\\"}', "a number can't be read: Exceeds the limit"),
    ],
)
def test_a_value_that_no_python_value_should_be_made_of_costs_no_other(tmp_path, value, said, chunk):
    path = tmp_path / "hostile.json"
    path.write_text(f"[1, {value} , 2]")
    before, refused, after = read_array(path, LIMIT, chunk)
    assert (before, after) == (1, 2)
    assert said in refused.detail
    assert refused.sha256 == hashlib.sha256(value.strip().encode()).hexdigest()


def test_what_is_too_deep_does_not_depend_on_the_caller_s_stack(tmp_path):
    path = tmp_path / "deep.json"
    allowed, refused = ("[" * depth + "]" * depth for depth in (MAX_DEPTH, MAX_DEPTH + 1))
    path.write_text(f"[{allowed}, {refused}, {json.dumps([[]] * 500)}]")

    def kinds(frames: int) -> list[type]:
        return kinds(frames - 1) if frames else [type(value) for value in read_array(path, LIMIT)]

    assert kinds(0) == kinds(700) == [list, Unreadable, list]


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(1, 9))
def test_bytes_put_anywhere_into_a_file_give_values_or_a_named_error(tmp_path_factory, noise, where, chunk):
    folder = tmp_path_factory.mktemp("noise")
    whole = b'[{"a": "\xc3\xa9 \\ud83d\\ude00", "b": [1.5e+3, null]}, "c"]'
    (folder / "a.json").write_bytes(whole[:where] + noise + whole[where:])
    outcomes = []
    for size in (chunk, LIMIT):
        values = []
        try:
            values.extend(read_array(folder / "a.json", LIMIT, size))
            outcomes.append([repr(value) for value in values])
        except DatasetError as error:
            assert "a.json" in str(error)
            outcomes.append("DatasetError")
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_control_characters_in_a_text_are_characters(tmp_path, chunk):
    path = tmp_path / "raw.json"
    path.write_text('[{"a": "tab\tline\nescape\x1b"}, "NUL\0", 3]')
    assert list(read_array(path, LIMIT, chunk)) == [{"a": "tab\tline\nescape\x1b"}, "NUL\0", 3]


class TestLongRecords:
    """A record may have so many bytes and no more, whatever the chunks."""

    @pytest.mark.parametrize("chunk", [3, 1 << 20])
    @pytest.mark.parametrize("text", ["x" * 98, "é" * 49, "\U0001f68c" * 24 + "xx"])
    def test_the_limit_is_in_bytes_and_to_the_byte(self, tmp_path, text, chunk):
        path = tmp_path / "long.json"
        path.write_text(f'["a", "{text}", "b"]', encoding="utf-8")
        assert list(read_array(path, 100, chunk)) == ["a", text, "b"]
        reader = read_array(path, 99, chunk)
        assert next(reader) == "a"
        with pytest.raises(DatasetError, match=r"long\.json, character 6: record 1 is longer than 99 bytes") as error:
            next(reader)
        assert "the most that max_record_megabytes allows" in str(error.value)
        assert "close the quote" in str(error.value) and "raise max_record_megabytes" in str(error.value)

    @pytest.mark.parametrize("endless", ['"' + "x" * 3_000_000, "[1, " * 800_000, '{"a": 1,' + " " * 3_000_000])
    def test_a_record_without_an_end_is_refused_before_the_file_is_read(self, tmp_path, endless, bytes_read):
        path = tmp_path / "endless.json"
        path.write_text(f"[0, {endless}")
        with pytest.raises(DatasetError, match="record 1 is longer than 100,000 bytes"):
            list(read_array(path, 100_000, 1000))
        assert sum(bytes_read) <= 102_000


def test_numbers_that_python_writes_are_read(tmp_path):
    path = tmp_path / "nan.json"
    path.write_text(f"[NaN, Infinity, -Infinity, 1e999, {10**30}]")
    assert [str(value) for value in read_array(path, LIMIT, 5)] == ["nan", "inf", "-inf", "inf", f"1{'0' * 30}"]


def test_records_before_the_break_are_given_and_the_rest_of_the_file_is_not_read(tmp_path):
    path = tmp_path / "broken.json"
    not_even_utf8 = b"\xff"
    path.write_bytes(b'[1, 2, {"a" 3}' + b" " * 1_000_000 + not_even_utf8)
    reader = read_array(path, LIMIT, 100)
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(DatasetError, match="character 12: record 2 is broken"):
        next(reader)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82", b"\xe2\x82\x28", b"\xed\xa0\xbd"])
def test_the_byte_that_is_not_utf8_is_named_and_the_records_before_it_are_given(tmp_path, bad, chunk):
    path = tmp_path / "a.json"
    start = '["é", "€", "'.encode()
    path.write_bytes(start + bad)
    reader = read_array(path, LIMIT, chunk)
    assert [next(reader), next(reader)] == ["é", "€"]
    with pytest.raises(DatasetError, match=rf"a\.json, byte {len(start)}: record 2 is not UTF-8"):
        next(reader)


def test_other_encodings_and_missing_files_are_errors_that_name_the_file(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('["caf\xe9"]'.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.json, byte 5: record 0 is not UTF-8"):
        list(read_array(path, LIMIT))
    with pytest.raises(DatasetError, match=r"none\.json: no such dataset file"):
        list(read_array(tmp_path / "none.json", LIMIT))
    with pytest.raises(DatasetError, match="can't be read"):
        list(read_array(tmp_path, LIMIT))
