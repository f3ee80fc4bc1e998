"""Damage in a bucket: found by hash, set aside inside the bucket with its reason, and made again."""

import pyarrow as pa
import pytest
from store_samples import NUMBERS, commit, key, numbers

from m3po_dagster.storage.errors import Damaged
from m3po_dagster.storage.s3 import Bucket
from m3po_dagster.storage.store import ArtifactStore

pytestmark = pytest.mark.slow
FOLDER = f"numbers/m3po,s0/{key()[2]}"


def spoil(store: ArtifactStore, name: str, how: str) -> None:
    bucket = Bucket(store.location)
    was = bucket.get(name)[0]
    half = len(was) // 2
    spoiled = {"cut": was[:half], "flipped": was[:half] + bytes([was[half] ^ 1]) + was[half + 1 :]}
    if how == "gone":
        bucket.remove(name)
    else:
        bucket.put(name, spoiled[how])


def aside(store: ArtifactStore) -> list[str]:
    return sorted(found.key.split("/", 5)[5] for found in Bucket(store.location).list(".quarantine/"))


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
@pytest.mark.parametrize("name", ["data.parquet", "files/note.txt"])
def test_a_damaged_object_is_found_set_aside_and_made_again(store, name, how):
    made = commit(store)
    table, version, attempt = made.table(), made.data_version, made.manifest.attempt
    assert store.quarantine(*key()) is None and not aside(store)
    spoil(store, f"{FOLDER}/{attempt}/{name}", how)
    found = store.find(*key())
    with pytest.raises(Damaged, match=f"s3://.*{name}.*m3po doctor store --repair"):
        found.table() if name == "data.parquet" else found.path("files")
    (reason,) = store.survey(content=True).damaged.values()
    assert reason
    place = store.quarantine(*key())
    assert place.startswith(f"{store.location}/.quarantine/{FOLDER}/")
    there = {"manifest.json", "reason.json", *(f"{attempt}/{one}" for one in ("data.parquet", "files/note.txt"))}
    assert set(aside(store)) == there - ({f"{attempt}/{name}"} if how == "gone" else set())
    (kept,) = store.quarantined()
    assert kept.reason == reason and place.endswith(kept.folder)
    assert store.find(*key()) is None and not list(store.list())
    again = commit(store)
    assert again.table().equals(table) and again.data_version == version


def test_a_damaged_manifest_is_set_aside_by_the_next_writer(store):
    made = commit(store)
    spoil(store, f"{FOLDER}/manifest.json", "flipped")
    assert store.find(*key()) is None
    again = commit(store)
    assert again.data_version == made.data_version
    assert "manifest.json" in aside(store) and f"{made.manifest.attempt}/data.parquet" in aside(store)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_part_alone_is_set_aside(store, how):
    with store.open(*key()) as draft:
        for index in range(3):
            draft.write_part(index, numbers(index), NUMBERS)
    (second,) = [found.key for found in Bucket(store.location).list() if found.key.endswith("00001.parquet")]
    spoil(store, second, how)
    with store.open(*key()) as draft:
        assert draft.parts() == [0, 2]
        assert draft.read_parts().equals(pa.concat_tables([numbers(0), numbers(2)]))
    assert any(name.endswith("parts/00001.parquet") for name in aside(store))


def test_a_damaged_copy_on_this_machine_is_fetched_again(store):
    made = commit(store)
    copy = made.path("files/note.txt")
    was = copy.read_bytes()
    copy.write_bytes(b"x" + was[1:])
    assert made.path("files/note.txt").read_bytes() == was
    assert not aside(store) and store.quarantine(*key()) is None
