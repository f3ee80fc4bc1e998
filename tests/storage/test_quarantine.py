"""Damage is found by hash, set aside with its reason, and never mistaken for what the disk refuses for the moment."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_samples import NUMBERS, PARTS, commit, key, numbers, write_in_parts

from m3po_dagster.storage.errors import Busy, Damaged, StoreError
from m3po_dagster.storage.manifest import seal_of
from m3po_dagster.storage.store import ArtifactStore


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def flip(path, place: int | None = None) -> bytes:
    """Changes one bit; gives what the file was."""
    was = path.read_bytes()
    place = len(was) // 2 if place is None else place
    path.write_bytes(was[:place] + bytes([was[place] ^ 1]) + was[place + 1 :])
    return was


def test_no_flipped_bit_of_a_manifest_goes_unnoticed(store):
    artifact = commit(store)
    path = artifact.folder / "manifest.json"
    was = path.read_bytes()
    for place in range(0, len(was), 3):
        for bit in (1, 2, 64):
            path.write_bytes(was[:place] + bytes([was[place] ^ bit]) + was[place + 1 :])
            found = store.find(*key())
            # A space for a line break between two fields says the same.
            assert found is None or found.manifest == artifact.manifest, (place, bit)
    path.write_bytes(was)
    assert store.find(*key()).manifest == artifact.manifest


def test_a_manifest_from_before_there_were_seals_counts_as_ever(store):
    artifact = commit(store)
    path = artifact.folder / "manifest.json"
    fields = json.loads(path.read_text())
    assert fields["seal"] == seal_of(fields) and fields["format"] == 2
    del fields["seal"]
    path.write_text(json.dumps({**fields, "format": 1}))
    found = store.find(*key())
    assert found.data_version == artifact.data_version and found.table().equals(artifact.table())
    path.write_text(json.dumps(fields))
    assert store.find(*key()) is None, "format 2 without a seal"


def test_a_damaged_artifact_is_set_aside_whole_and_its_place_is_free(store):
    artifact = commit(store)
    assert store.quarantine(*key()) is None and store.find(*key()) is not None
    damaged = artifact.folder / "data.parquet"
    was = flip(damaged)
    with pytest.raises(Damaged, match="doctor store") as met:
        store.find(*key()).table()
    assert met.value.key == key()
    place = store.quarantine(*key())
    assert store.find(*key()) is None and list(store.drafts()) == [] and not artifact.folder.exists()
    (aside,) = store.quarantined()
    assert place == str(store.root / aside.folder) and aside.bytes > len(was)
    held = store.root / aside.folder
    reason = json.loads((held / "reason.json").read_text())
    assert "columns" in reason["reason"] or "data.parquet" in str(reason)
    assert reason["files"] == ["manifest.json", "data.parquet", "files"]
    assert len((held / "data.parquet").read_bytes()) == len(was) and (held / "files" / "note.txt").is_file()
    assert store.quarantine(*key()) is None, "what is gone is not set aside twice"
    # Listings of the store know nothing of it, and the same is made again beside it.
    assert list(store.list()) == []
    assert commit(store).data_version == artifact.data_version and len(store.quarantined()) == 1


def test_files_are_verified_when_their_path_is_asked_for(store):
    artifact = commit(store)
    note = artifact.folder / "files" / "note.txt"
    assert artifact.path("files") == note.parent
    was = flip(note)
    for name in ("files", "files/note.txt"):
        with pytest.raises(Damaged, match=r"note\.txt.*bytes are not what was committed"):
            artifact.path(name)
    assert artifact.path("data.parquet").is_file()
    note.write_bytes(was)
    assert artifact.path("files/note.txt").read_bytes() == was
    note.unlink()
    with pytest.raises(Damaged, match="missing"):
        artifact.path("files")


def test_a_damaged_part_is_set_aside_by_itself(store):
    with store.open(*key()) as draft:
        draft.parts(plan={"parts": PARTS})
        for index in range(3):
            draft.write_part(index, numbers(index), NUMBERS)
    path = store.root / "numbers" / "m3po,s0" / key()[2] / "parts" / "00001.parquet"
    pq.write_table(numbers(7), path)
    made: list[int] = []
    artifact = write_in_parts(store, made.append)
    assert made == [1, 3] and artifact.table().num_rows == PARTS * 3
    (aside,) = store.quarantined()
    assert pq.read_table(store.root / aside.folder / "parts" / "00001.parquet").equals(numbers(7))


def test_a_manifest_that_does_not_count_leaves_finished_parts_to_go_on_from(store):
    made: list[int] = []
    undisturbed = write_in_parts(store, made.append)
    shutil.rmtree(undisturbed.folder)
    with store.open(*key()) as draft:
        draft.parts(plan={"parts": PARTS})
        for index in range(PARTS):
            draft.write_part(index, numbers(index), NUMBERS)
    (undisturbed.folder / "manifest.json").write_text("{")
    (undisturbed.folder / "data.parquet").write_bytes(b"half")
    made.clear()
    assert write_in_parts(store, made.append).data_version == undisturbed.data_version
    assert made == []
    (aside,) = store.quarantined()
    assert sorted(path.name for path in (store.root / aside.folder).iterdir()) == [
        "data.parquet",
        "manifest.json",
        "reason.json",
    ]


def test_what_is_being_written_is_not_set_aside(store):
    with store.open(*key()), pytest.raises(Busy):
        store.quarantine(*key())


def test_out_of_memory_and_a_disk_that_refuses_are_no_damage(store, monkeypatch):
    """A part or table that can't be read for want of memory or rights is whole: setting it aside would lose it."""
    artifact = commit(store)
    with store.open(*key(code="2")) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    refusals = {
        pa.ArrowMemoryError("malloc of size 64 failed"): MemoryError,
        OSError(5, "Input/output error"): StoreError,
        PermissionError(13, "Permission denied"): StoreError,
    }
    for refusal, wanted in refusals.items():

        def refuse(*_: object, refusal: Exception = refusal, **__: object) -> None:
            raise refusal

        with monkeypatch.context() as patch:
            patch.setattr(pq, "ParquetFile", refuse)
            with pytest.raises(wanted) as met:
                artifact.table()
            assert not isinstance(met.value, Damaged)
            with pytest.raises(wanted):
                store.quarantine(*key())
            with pytest.raises(wanted), store.open(*key(code="2")):
                pass
    assert store.quarantined() == [] and artifact.table().num_rows
    with store.open(*key(code="2")) as draft:
        assert draft.parts() == [0]


def test_a_full_disk_still_sets_aside(store, monkeypatch):
    """Moving takes no space; the reason goes unwritten."""
    artifact = commit(store)
    flip(artifact.folder / "data.parquet")
    write = type(store._disk).write

    def full(self, path, fill):
        if path.endswith("reason.json"):
            raise StoreError("no space left")
        return write(self, path, fill)

    monkeypatch.setattr(type(store._disk), "write", full)
    place = store.quarantine(*key())
    (aside,) = store.quarantined()
    assert place == str(store.root / aside.folder) and aside.reason == "unknown" and aside.bytes
