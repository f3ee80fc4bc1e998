import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.datasets.json_text import MAX_DEPTH, Unreadable, canonical_sha256, decode, loads

DIGITS = "7" * 5000
DEEP = "[" * 2000


@pytest.mark.parametrize(
    "whole",
    [
        f'{{"n": {DIGITS}, "s": "}}", "t": ["]\\\\", "\\"]"]}}',
        f'{{"n": -{DIGITS}}}',
        DEEP + r'"[[]\\"' + "]" * 2000,
        f'[{DIGITS}, {{"a": "[{{"}}]',
    ],
)
@given(rest=st.text(max_size=5), data=st.data())
def test_a_value_that_is_not_read_ends_where_it_ends_and_never_before(whole, rest, data):
    value, end = decode(f"{whole} {rest}")
    assert isinstance(value, Unreadable)
    assert end == len(whole)
    cut = data.draw(st.integers(max(0, len(whole) - 40), len(whole) - 1))
    with pytest.raises(json.JSONDecodeError):
        decode(whole[:cut])


def test_depth_is_counted_outside_of_strings():
    text = json.dumps({"a": ["[" * 500, {"b": "{" * 500}], "wide": [[]] * 500})
    assert decode(text) == (json.loads(text), len(text))
    assert isinstance(loads("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)), Unreadable)


@pytest.mark.parametrize("text", ["", " ", "[1] 2", "[1", "nul", "{'a': 1}"])
def test_what_is_not_one_value_is_an_error(text):
    with pytest.raises(json.JSONDecodeError):
        loads(text)


def test_the_hash_is_of_the_content():
    assert canonical_sha256({"a": 1, "b": "é"}) == canonical_sha256(json.loads('{"b": "\\u00e9",   "a": 1}'))
    assert canonical_sha256({"a": 1}) != canonical_sha256({"a": "1"})
    assert canonical_sha256({"a": "\ud83d", "b": float("nan")}) == canonical_sha256({"b": float("nan"), "a": "\ud83d"})
