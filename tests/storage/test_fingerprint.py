"""Canonical JSON and fingerprints."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.storage.fingerprint import canonical_json, file_sha256, fingerprint

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@given(values)
def test_it_reads_back_as_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@settings(max_examples=40)
@given(st.dictionaries(st.text(), values, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_count(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert canonical_json({key: value[key] for key in keys}) == canonical_json(value)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_equal_numbers_have_equal_text(number):
    assert canonical_json(float(number)) == canonical_json(number) == str(number)


@given(values, values)
def test_equal_text_means_equal_values(one, other):
    if canonical_json(one) == canonical_json(other):
        assert one == other


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, math.nan]}, r"value\.a\[1\] is nan"),
        ([math.inf], r"value\[0\] is inf"),
        ({"b": {1: 2}}, r"value\.b has the key 1"),
        ({"c": {1, 2}}, r"value\.c is a set"),
        (b"x", "value is a bytes"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_its_place(value, place):
    with pytest.raises((TypeError, ValueError), match=place):
        canonical_json(value)


def test_every_part_of_a_fingerprint_counts():
    base = {"asset": "a", "partition": "p", "code_version": "1", "settings": {"x": 1}, "inputs": {"i": "v"}}
    others = [
        {"asset": "b"},
        {"partition": "q"},
        {"partition": ""},
        {"code_version": "2"},
        {"settings": {"x": 2}},
        {"settings": {"x": True}},
        {"inputs": {"i": "w"}},
        {"inputs": {"j": "v"}},
        {"inputs": {}},
    ]
    fingerprints = [fingerprint(**base)] + [fingerprint(**{**base, **other}) for other in others]
    assert len(set(fingerprints)) == len(fingerprints)
    assert fingerprint(**base) == fingerprint(**json.loads(json.dumps(base)))


def test_file_sha256_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # The digest of "abc" that FIPS 180-2 gives.
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
