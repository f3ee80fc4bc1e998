"""The artifact store in a bucket of a real S3 service: what it keeps, and what it asks the service for."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from store_samples import NUMBERS, PARTS, commit, key, numbers, write_in_parts

from m3po_dagster.storage import scratch
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.s3 import Bucket
from m3po_dagster.storage.store import ArtifactStore
from tests.s3_requests import counted

pytestmark = pytest.mark.slow


def objects(url: str) -> list[str]:
    """Every key below the store's prefix, the attempts' names shortened."""
    return sorted(found.key for found in Bucket(url).list())


def test_an_artifact_is_what_it_is_in_a_folder(store, tmp_path):
    local = write_in_parts(ArtifactStore(tmp_path / "store"), lambda index: None)
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
        assert store.find(*key()) is None
    assert not list(store.list())
    made = write_in_parts(store, lambda index: None)
    found = store.find(*key())
    differ = {"attempt", "created", "seconds", "seal"}
    assert found.manifest == made.manifest and made.manifest.attempt
    assert made.manifest.model_dump(exclude=differ) == local.manifest.model_dump(exclude=differ)
    assert found.table().equals(local.table())
    assert found.path("files/note.txt").read_bytes() == local.path("files/note.txt").read_bytes()
    assert found.path("data.parquet").read_bytes() == local.path("data.parquet").read_bytes()
    folder = f"numbers/m3po,s0/{key()[2]}"
    names = [f"{made.manifest.attempt}/data.parquet", f"{made.manifest.attempt}/files/note.txt", "manifest.json"]
    assert objects(store.location) == [f"{folder}/{name}" for name in names]
    assert found.where("files") == f"{store.location}/{folder}/{made.manifest.attempt}/files"
    assert not list((store.cache_folder / "drafts").glob("*/*"))


def test_a_folder_copied_into_a_bucket_is_a_store_and_the_other_way_round(server, store, tmp_path):
    here = ArtifactStore(tmp_path / "here")
    first = commit(here, "base", "")
    for path in first.folder.rglob("*"):
        if path.is_file():
            store._disk._bucket.upload(path, str(path.relative_to(here.root)))
    second = commit(store, origin=store.find(*first.key))
    assert store.find(*first.key).table().equals(first.table())
    there = tmp_path / "there"
    for name in objects(store.location):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        store._disk._bucket.download(name, there / name)
    assert {a.key for a in ArtifactStore(there).list()} == {first.key, second.key}
    assert ArtifactStore(there).find(*second.key).table().equals(second.table())
    assert ArtifactStore(there).find(*second.key).path("files/note.txt").read_text() == "numbers m3po|s0 1"


def test_requests_of_a_commit(store):
    with counted(store) as requests, store.open(*key()) as draft:
        finished = draft.parts(plan={"parts": PARTS})
        assert finished == []
        for index in range(PARTS):
            draft.write_part(index, numbers(index), NUMBERS)
        draft.commit({"data": (draft.read_parts(), NUMBERS)}, code_version="1")
    assert requests == {
        # lease, plan, parts, table, manifest
        "PutObject": 1 + 1 + PARTS + 1 + 1,
        # is there a manifest, a plan of this attempt; each part once
        "GetObject": 1 + 1 + PARTS,
        # what an attempt before left, what is to be cleared away
        "ListObjectsV2": 2,
        "DeleteObjects": 1,
        "DeleteObject": 1,
    }


def test_requests_of_reading(store):
    rows = 300_000
    names = [f"{row:06d}" for row in range(rows)]
    values = np.random.default_rng(0).random(rows)  # which no compression shortens
    table = pa.table({"name": names, "value": values}, schema=NUMBERS.schema)
    with store.open(*key()) as draft:
        draft.commit({"data": (table, NUMBERS)}, code_version="1")
    small = commit(store, code="2")
    with counted(store) as requests:
        found = store.find(*key())
    assert requests == {"GetObject": 1}
    sent: list[int] = []
    fetch = Bucket.get_range
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "get_range", lambda *at: sent.append(at[-1]) or fetch(*at))
        assert found.table(columns=["name"]).num_rows == rows
        # The end, and the column's piece of each group of rows; what lies between them stays where it is.
        assert len(sent) <= 1 + -(-rows // 16_384) and sum(sent) < found.manifest.tables["data"].bytes * 0.5
    with counted(store) as requests:
        assert found.table().equals(table)
    assert requests == {"GetObject": 2}, "the end, then all before it in one stretch"
    with counted(store) as requests:
        assert small.table().equals(numbers(1))
    assert requests == {"GetObject": 1}
    with counted(store) as requests:
        assert small.path("files") == small.path("files/note.txt").parent
        assert small.path("files/note.txt").read_text() == "numbers m3po|s0 2"
    assert requests == {"GetObject": 1}, "a file is copied once"


def test_many_are_looked_for_by_listing_and_few_one_by_one(store):
    made = [commit(store, code=f"{'x' * number}") for number in range(1, 12)]
    gone = key(code="never made")
    with counted(store) as requests:
        assert store.held([*(a.key for a in made), gone]) == {a.key for a in made}
    assert requests == {"ListObjectsV2": 1}
    with counted(store) as requests:
        assert store.held([made[0].key, gone]) == {made[0].key}
    assert requests == {"HeadObject": 2}
    store._disk._bucket.put("ledger/segments/1.jsonl", b"not the store's")
    with counted(store) as requests:
        assert [a.key for a in store.list()] == [a.key for a in made]
    # The folders at the top, what lies in both of them, a manifest each.
    assert requests == {"ListObjectsV2": 3, "GetObject": 11}
    assert store.resolve(made[3].fingerprint[:10]).key == made[3].key


def test_a_missing_bucket_holds_no_answer(url):
    nowhere = ArtifactStore("s3://nowhere-to-be-found/m3po")
    for keys in ([key()], [key(code=f"{number}") for number in range(20)]):
        with pytest.raises(StoreError, match="make the bucket nowhere-to-be-found"):
            nowhere.held(keys)


def test_a_second_writer_hears_who_is_at_work(store):
    with store.open(*key()), pytest.raises(Busy, match=r"s3://.*/lock is being written by process \d+"):
        store.open(*key()).__enter__()
    with store.open(*key()) as draft:
        assert draft.parts() == []


@pytest.mark.parametrize("how", ["no JSON", "of another", "leads out"])
def test_a_manifest_that_does_not_count_gives_way(store, caplog, how):
    artifact = commit(store)
    at = f"{artifact.key.folder}/manifest.json"
    fields = json.loads(store._disk.read(at))
    if how == "of another":
        fields["partition"] = "m3po|s1"
    elif how == "leads out":
        fields["files"] = {"../../../../escaped": fields["files"]["files/note.txt"]}
    store._disk._bucket.put(at, b"\xff" if how == "no JSON" else json.dumps(fields).encode())
    assert store.find(*key()) is None and "does not count as committed" in caplog.text
    assert commit(store).data_version == artifact.data_version
    assert store.find(*key()).table().equals(numbers(1))


@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
def test_a_damaged_object_is_never_taken_for_what_was_written(store, how):
    artifact = commit(store)
    for name in ("data.parquet", "files/note.txt"):
        at = f"{artifact.key.folder}/{artifact.manifest.attempt}/{name}"
        content = store._disk.read(at)
        if how == "gone":
            store._disk.remove(at)
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            store._disk._bucket.put(at, flipped if how == "flipped" else content[:middle])
    with pytest.raises(StoreError, match=r"s3://.*data\.parquet can't be read or is damaged"):
        artifact.table()
    for name in ("data.parquet", "files"):
        with pytest.raises(StoreError, match=r"s3://.*(is damaged|it was removed)"):
            artifact.path(name)
    assert not [path for path in store.cache_folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_copy_that_was_spoilt_here_is_fetched_again(store):
    artifact = commit(store)
    path = artifact.path("files/note.txt")
    text = path.read_text()
    path.write_text("x" * len(text))
    assert artifact.path("files").joinpath("note.txt").read_text() == text


def test_what_is_moved_is_there_under_its_new_name_alone(store):
    artifact = commit(store)
    folder, attempt = artifact.key.folder, artifact.manifest.attempt
    assert store._disk.children(folder) == [attempt, "manifest.json"]
    for name in ("manifest.json", attempt):
        store._disk.move(f"{folder}/{name}", f"aside/{name}")
    names = [f"{attempt}/data.parquet", f"{attempt}/files/note.txt", "manifest.json"]
    assert objects(store.location) == [f"aside/{name}" for name in names]
    assert store.find(*key()) is None
    with pytest.raises(StoreError, match=r"can't move s3://.*manifest\.json: it is not there"):
        store._disk.move(f"{folder}/manifest.json", "aside/manifest.json")


def test_gc_removes_what_nobody_needs_and_the_copies_of_it(store, server):
    source = commit(store, "source_dataset", "")
    adapter = commit(store, "adapter", "m3po|0", source=source)
    old = commit(store, "source_dataset", "", code="old")
    copy = old.path("files/note.txt")
    with store.open(*key(code="left")) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    assert [(info.key, info.parts) for info in store.drafts()] == [(key(code="left"), 1)]
    assert store.gc(set(), older_than=3600) == []
    with store.open(*key(code="busy")) as busy:
        busy.write_part(0, numbers(0), NUMBERS)
        time.sleep(1.1)  # the service tells times in seconds
        gone = store.gc(set(), dry_run=False, older_than=0)
        assert {removal.key for removal in gone} == {old.key, key(code="left")}
        assert busy.parts() == [0] and busy.read_parts().equals(numbers(0))
    assert {a.key for a in store.list()} == {source.key, adapter.key}
    left = {name.split("/")[2] for name in objects(store.location)}
    assert left == {source.fingerprint, adapter.fingerprint, key(code="busy")[2]}
    assert not copy.exists() and not copy.parents[2].exists()


def test_parts_cut_another_way_are_not_taken_for_these(store):
    with store.open(*key()) as draft:
        draft.parts(plan={"rows": 3})
        draft.write_part(1, numbers(1), NUMBERS)
    with store.open(*key()) as draft:
        assert draft.parts(plan={"rows": 4}) == []
        draft.write_part(1, numbers(2), NUMBERS)
        assert draft.parts(plan={"rows": 4}) == [1]
    with store.open(*key()) as draft:
        assert draft.parts(plan={"rows": 3}) == [1] and draft.read_part(1).equals(numbers(1))
        assert draft.parts(plan={"rows": 3}) == [1]
        draft.commit({"data": (draft.read_parts(), NUMBERS)}, code_version="1")
    assert len(objects(store.location)) == 2


def test_a_damaged_part_is_made_again(store):
    with store.open(*key()) as draft:
        for index in range(2):
            draft.write_part(index, numbers(index), NUMBERS)
    (at,) = [name for name in objects(store.location) if name.endswith("00001.parquet")]
    store._disk._bucket.put(at, store._disk.read(at)[:-7])
    with store.open(*key()) as draft:
        assert draft.parts() == [0] and at not in objects(store.location)
        draft.write_part(1, numbers(1), NUMBERS)
        assert draft.read_parts().equals(pa.concat_tables([numbers(0), numbers(1)]))


def checkpoint(folder: Path, step: int, text: str) -> None:
    """A checkpoint as a training leaves it: its files, then the one that declares it whole."""
    (folder / f"step{step}" / "deep").mkdir(parents=True)
    (folder / f"step{step}" / "deep" / "weights").write_text(text)
    (folder / f"step{step}" / "shared").write_text("the same in all")
    (folder / f"step{step}" / "whole").write_text(f"{step}")


def leave(store: ArtifactStore, *steps: int) -> None:
    """An attempt that fails after it wrote checkpoints, each in the place of the one before, and began another."""
    with pytest.raises(RuntimeError), store.open(*key()) as draft:
        for step in steps:
            for old in draft.scratch("whole").glob("step*"):
                shutil.rmtree(old)
            checkpoint(draft.scratch("whole"), step, f"weights {step}")
            until(lambda: any("scratch.json" in name for name in objects(store.location)))
        (draft.scratch("whole") / "begun").mkdir()
        (draft.scratch("whole") / "begun" / "weights").write_text("half")
        raise RuntimeError("the machine is taken away")


def until(met) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_checkpoints_are_left_to_the_next_machine(store, url, monkeypatch, tmp_path):
    monkeypatch.setattr(scratch, "SECONDS_BETWEEN_LOOKS", 0.05)
    leave(store, 7, 8)
    kept = [name for name in objects(url) if "/scratch/" in name]
    assert len(kept) == 3, "the newest whole checkpoint alone is kept"
    shutil.rmtree(tmp_path / "cache")  # another machine
    monkeypatch.setenv("M3PO_CACHE", str(tmp_path / "other"))
    with counted(other := ArtifactStore(url)) as requests, other.open(*key()) as draft:
        found = draft.scratch("whole")
        assert sorted(path.name for path in found.iterdir()) == ["step8"]
        assert (found / "step8" / "deep" / "weights").read_text() == "weights 8"
        checkpoint(found, 9, "weights 9")
        shutil.rmtree(found / "step8")
        until(lambda: sum("scratch.json" in name for name in objects(url)) == 2)
        (draft.folder() / "weights").write_text("done")
        draft.commit(code_version="1")
    # lease, what is new of the checkpoint (not what both have), index, weights, manifest
    assert requests["PutObject"] == 1 + 2 + 1 + 1 + 1
    assert len(objects(url)) == 2 and not list((other.cache_folder / "drafts").glob("*/*"))


def test_a_damaged_checkpoint_is_done_without(store, url, monkeypatch, caplog):
    monkeypatch.setattr(scratch, "SECONDS_BETWEEN_LOOKS", 0.05)
    leave(store, 7)
    for name in objects(url):
        if "/scratch/" in name:
            store._disk._bucket.put(name, b"other")
    with store.open(*key()) as draft:
        assert list(draft.scratch("whole").iterdir()) == []
    assert "its work is done again" in caplog.text


def test_no_store_is_there_before_something_is_written(store):
    assert not store.exists()
    commit(store)
    assert store.exists()
    with pytest.raises(StoreError, match="no local folder"):
        _ = store.root


def test_a_dead_writers_room_on_this_machine_is_given_back(store):
    left = store.cache_folder / "drafts" / "numbers" / "m3po,s0" / "f" / "attempt-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "weights").write_text("x" * 1000)
    with store.open(*key()) as draft:
        assert not left.exists() and draft.folder().is_dir()
