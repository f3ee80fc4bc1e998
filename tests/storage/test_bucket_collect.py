"""Collecting and setting aside in a bucket: what a sleeper, a dry run, or a killed process does not do."""

import os
import re
import threading
import time
import tracemalloc

import pyarrow as pa
import pytest
from store_samples import NUMBERS, PARTS, commit, key, numbers, write_in_parts

from m3po_dagster.storage import bucket_folder, lease
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.storage.quarantine import damage
from m3po_dagster.storage.s3 import Bucket
from m3po_dagster.storage.staging import Staging
from m3po_dagster.storage.store import ArtifactStore
from tests.s3_requests import counted

pytestmark = pytest.mark.slow


@pytest.fixture
def url(url, monkeypatch) -> str:
    """Leases that run out soon."""
    monkeypatch.setattr(bucket_folder, "LEASE_SECONDS", 3)
    return url


def expected() -> pa.Table:
    return pa.concat_tables([numbers(index) for index in range(PARTS)])


class Sleeper(threading.Thread):
    """Work that sleeps from its `asleep()` to `wake()`, and nothing renews its lease; `error` is how it ended."""

    def __init__(self, work, monkeypatch) -> None:
        super().__init__()
        self._work, self._patch, self.error = work, monkeypatch, None
        self._slept, self._woken = threading.Event(), threading.Event()

    def asleep(self) -> None:
        """Called by the work, once, where it sleeps."""
        self._slept.set()
        assert self._woken.wait(60)

    def run(self) -> None:
        try:
            self._work()
        except StoreError as error:
            self.error = error

    def fall_asleep(self) -> None:
        """Start the work; returns once it sleeps, its lease no longer being renewed."""
        with self._patch.context() as patch:
            patch.setattr(lease.Lease, "_keep", lambda self: None)
            self.start()
            assert self._slept.wait(60)

    def wake(self) -> None:
        """Let it go on to its end."""
        self._woken.set()
        self.join(60)
        assert not self.is_alive()


def remade(store: ArtifactStore, old: str) -> Artifact:
    """What another machine makes in the sleeper's folder once its lease has run out, whatever was there gone."""
    deadline = time.monotonic() + 30
    lock = None
    while not lock:
        try:
            lock = store._disk.lock(old)
        except Busy:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    store._disk._bucket.remove_all([f"{old}/{name}" for name in store._disk.files(old) if name != "lock"])
    lock.release()
    return write_in_parts(store, lambda index: None)


@pytest.mark.parametrize("what", ["draft", "artifact"])
def test_a_collector_that_sleeps_past_its_lease_spoils_nothing(url, monkeypatch, what):
    store, other = ArtifactStore(url), ArtifactStore(url)
    if what == "draft":
        with store.open(*key()) as draft:
            draft.write_part(0, numbers(0), NUMBERS)
    else:
        write_in_parts(store, lambda index: None)
    time.sleep(1.1)  # the service tells times in seconds
    looks, files = [], store._disk.files
    sleeper = Sleeper(lambda: store.gc(set(), dry_run=False, older_than=0), monkeypatch)

    def judged(folder: str) -> dict:
        found = files(folder)
        looks.append(folder)
        if len(looks) == 2:  # the first time without the lock
            sleeper.asleep()
        return found

    monkeypatch.setattr(store._disk, "files", judged)
    sleeper.fall_asleep()
    artifact = remade(other, looks[0])
    sleeper.wake()
    assert "run again" in str(sleeper.error), "it heard that its lease was gone"
    assert other.find(*key()).manifest == artifact.manifest
    assert other.find(*key()).table().equals(expected()) and other.survey(content=True).damaged == {}


def test_a_collector_that_sleeps_right_after_its_last_look_at_its_lease_removes_only_what_it_judged(url, monkeypatch):
    store, other = ArtifactStore(url), ArtifactStore(url)
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    time.sleep(1.1)
    clear = store._disk.clear
    sleeper = Sleeper(lambda: store.gc(set(), dry_run=False, older_than=0), monkeypatch)

    def late(*arguments) -> None:
        sleeper.asleep()
        clear(*arguments)

    monkeypatch.setattr(store._disk, "clear", late)
    sleeper.fall_asleep()
    artifact = remade(other, draft.key.folder)
    sleeper.wake()
    assert sleeper.error is None
    assert other.find(*key()).manifest == artifact.manifest and other.survey(content=True).damaged == {}


def test_who_sets_aside_and_sleeps_past_its_lease_spoils_nothing(url, monkeypatch):
    store, other = ArtifactStore(url), ArtifactStore(url)
    made = write_in_parts(store, lambda index: None)
    at = f"{made.key.folder}/{made.manifest.attempt}/data.parquet"
    Bucket(url).put(at, b"damaged")
    sleeper = Sleeper(lambda: store.quarantine(*key()), monkeypatch)

    def damaged(disk, found) -> str:
        reason = damage(disk, found)
        sleeper.asleep()
        return reason

    monkeypatch.setattr("m3po_dagster.storage.store.damage", damaged)
    sleeper.fall_asleep()
    artifact = remade(other, made.key.folder)
    sleeper.wake()
    assert "run again" in str(sleeper.error)
    assert other.find(*key()).manifest == artifact.manifest
    assert other.find(*key()).table().equals(expected()) and other.quarantined() == []


def test_a_lease_is_given_back_whatever_becomes_of_this_machines_room(url, monkeypatch, caplog):
    def refused(self) -> None:
        raise OSError(30, "Read-only file system")

    store = ArtifactStore(url)
    monkeypatch.setattr(Staging, "remove", refused)
    write_in_parts(store, lambda index: None)
    assert "Read-only file system" in caplog.text
    assert not [found.key for found in Bucket(url).list() if found.key.endswith("lock")]
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if name.startswith("lease ") and key()[2] in name]


def test_a_dry_collection_writes_nothing_and_tells_what_a_real_one_does(store):
    old = commit(store, code="old")
    with store.open(*key(code="left")) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    with store.open(*key(code="busy")) as busy:
        busy.write_part(0, numbers(0), NUMBERS)
        time.sleep(1.1)
        with counted(store) as requests:
            would = store.gc(set(), older_than=0)
        assert set(requests) == {"ListObjectsV2", "GetObject"}
        assert {removal.key for removal in would} == {old.key, key(code="left")}
        assert store.gc(set(), dry_run=False, older_than=0) == would


def test_copies_that_a_killed_process_left_half_made_are_swept(store):
    old = commit(store, code="old")
    kept = commit(store, "adapter", "m3po|0")
    folder = old.path("files")
    aged = {name: folder / name for name in (".note.txt.0a1b2c3d", ".note.txt.0a1b2c3d.4E5f6A7b")}
    beside = kept.path("files") / ".note.txt.0a1b2c3d"
    young, own = folder / ".other.txt.0a1b2c3d", folder / ".gitattributes"
    for path in (*aged.values(), beside, young, own):
        path.write_text("half")
        if path != young:
            os.utime(path, (time.time() - 3700, time.time() - 3700))
    store.gc(set(), dry_run=False, older_than=0)
    assert sorted(path.name for path in folder.iterdir()) == [".gitattributes", ".other.txt.0a1b2c3d"]
    assert beside.exists(), "its artifact was not touched"
    store._disk.remove_empty(kept.key.folder)
    assert not beside.exists() and kept.path("files/note.txt").is_file()


def test_a_large_file_is_hashed_a_piece_at_a_time(store, tmp_path):
    size, large = 32 << 20, tmp_path / "large"
    large.write_bytes(os.urandom(size))
    disk = store._disk
    disk._bucket.upload(large, "large")
    disk.sha256("large", 1)  # boto3 is loaded
    tracemalloc.start()
    try:
        found = disk.sha256("large", size)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == file_sha256(large)
    assert most < 28 << 20, "a piece of 8 MiB, and twice that while it is read"
    with pytest.raises(FileNotFoundError, match=re.escape(f"with its {size + 1} bytes")):
        disk.sha256("large", size + 1)
