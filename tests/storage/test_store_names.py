"""Folder names of partitions: safe, reversible, one for each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.names import ArtifactKey, decode_partition, encode_partition, parse_folder

FINGERPRINT = "0" * 63 + "a"


def encodable(partition: str) -> bool:
    try:
        encode_partition(partition)
    except StoreError:
        return False
    return True


partitions = st.one_of(st.text(max_size=20), st.text("|_.,%- ab0é", max_size=8)).filter(encodable)


@given(partitions)
def test_round_trip(partition):
    name = encode_partition(partition)
    assert decode_partition(name) == partition
    assert parse_folder("candidates", name, FINGERPRINT) == ("candidates", partition, FINGERPRINT)


@given(partitions)
def test_a_name_is_one_safe_path_step(partition):
    name = encode_partition(partition)
    assert name.isascii() and 0 < len(name) <= 255
    assert not set(name) & set("/\\*?[]{}=|<>:\"' ") and not name.startswith(".")


@given(partitions, partitions)
def test_two_partitions_never_share_a_name(one, other):
    assert (encode_partition(one) == encode_partition(other)) == (one == other)


@given(st.text("abc_,%25F.|", max_size=8))
def test_a_folder_decodes_only_if_a_partition_has_that_name(name):
    key = parse_folder("candidates", name, FINGERPRINT)
    if key:
        assert encode_partition(key.partition) == name


@pytest.mark.parametrize(
    ("partition", "name"),
    [("", "_"), ("_", "%5F"), ("s0", "s0"), ("m3po|s0", "m3po,s0"), ("a,b", "a%2Cb"), (".a", "%2Ea")],
)
def test_names_people_will_see(partition, name):
    assert encode_partition(partition) == name


@pytest.mark.parametrize("partition", ["..", ".", "a/b", "../x", "a\\b", "a\nb", "a\0b", "\ud800", "x" * 256, "é" * 50])
def test_unsafe_partitions_are_refused(partition):
    with pytest.raises(StoreError, match="partition"):
        encode_partition(partition)


@pytest.mark.parametrize(
    ("asset", "fingerprint"),
    [
        ("../x", FINGERPRINT),
        ("a/b", FINGERPRINT),
        ("", FINGERPRINT),
        (".cache", FINGERPRINT),
        ("a", ".."),
        ("a", "F" * 64),
    ],
)
def test_unsafe_assets_and_fingerprints_are_refused(asset, fingerprint):
    with pytest.raises(StoreError):
        _ = ArtifactKey(asset, "s0", fingerprint).folder
    assert parse_folder(asset, "s0", fingerprint) is None
