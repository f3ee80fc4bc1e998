"""Kills, races and full disks: nothing half-written is trusted, nothing finished is lost."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import store_samples
from store_samples import NUMBERS, PARTS, ROWS, in_child, key, numbers, write_in_parts

from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.store import ArtifactStore


@pytest.fixture
def quick_disk(tmp_path):
    """A folder in memory where there is one: a kill, unlike a power cut, can't tell it from a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def outcome_of(task: str, place: Path):
    """Run this package's writer as a process of its own, so that it forks before Arrow has threads."""
    command = [sys.executable, store_samples.__file__, task, str(place)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_writer_killed_anywhere_is_resumed_to_the_same_table(quick_disk):
    outcomes = outcome_of("kill", quick_disk)
    undisturbed = outcomes[-1]
    assert undisturbed["code"] == 0 and undisturbed["made"] == list(range(PARTS))
    killed = outcomes[:-1]
    # At least before the lock, every part's opening and renaming, the table's, the manifest's, and in the tidying.
    assert len(killed) >= 2 * PARTS + 6
    assert {outcome["made before"] for outcome in killed} == set(range(PARTS + 1))
    assert {outcome["committed"] for outcome in killed} == {True, False}
    for outcome in killed:
        assert outcome["code"] == -signal.SIGKILL and outcome["resumed"] == 0, outcome
        assert (outcome["hash"], outcome["data"]) == (undisturbed["hash"], undisturbed["data"]), outcome
        repeated = Counter(outcome["made"]).total() - PARTS
        assert set(outcome["made"]) == set(range(PARTS)) and repeated <= 1, outcome
        assert not (outcome["committed"] and repeated), outcome


def test_of_several_writers_one_makes_it(quick_disk):
    for outcome in outcome_of("race", quick_disk):
        met = Counter(outcome["met"])
        assert outcome["codes"] == [0] * 4 and met.total() == 4, outcome
        assert met["made"] == 1, outcome


def test_a_lock_dies_with_its_process(tmp_path):
    store = ArtifactStore(tmp_path)

    def die_holding() -> None:
        with store.open(*key()):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_holding) == -signal.SIGKILL
    assert (tmp_path / "numbers" / "m3po,s0" / key()[2] / "lock").exists()
    with store.open(*key()) as draft:
        assert draft.parts() == []


def test_a_lock_taken_on_a_file_that_is_gone_is_no_lock(tmp_path, monkeypatch):
    """Between opening the lock file and locking it, its holder may let go and take the file away."""
    store = ArtifactStore(tmp_path)
    holder = store.open(*key())
    holder.__enter__()
    real, attempts = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        attempts.append(descriptor)
        if len(attempts) == 1:
            holder.__exit__(None, None, None)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with store.open(*key()):
        assert len(attempts) == 2
        with pytest.raises(Busy), store.open(*key()):
            pass


def fill(store: ArtifactStore, rows: int) -> tuple[int, StoreError | None]:
    """Write ever more parts of random-looking rows; how many were finished, and the error that ended it."""
    with store.open(*key()) as draft:
        for index in range(64):
            names = [f"{index}:{os.urandom(16).hex()}" for _ in range(rows)]
            table = pa.table({"name": names, "value": [float(row) for row in range(rows)]}, schema=NUMBERS.schema)
            try:
                draft.write_part(index, table, NUMBERS)
            except StoreError as error:
                return index, error
    return 64, None


def assert_kept(store: ArtifactStore, finished: int, error: StoreError) -> None:
    """After a full disk: a clear error, the finished parts whole, no traces of the unfinished one."""
    assert f"{finished:05d}.parquet" in str(error) and "free some space" in str(error)
    assert store.find(*key()) is None
    with store.open(*key()) as draft:
        assert draft.parts() == list(range(finished))
    assert not list(store.root.rglob("*.tmp"))


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user lacks")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_costs_one_part(tiny_disk):
    store = ArtifactStore(tiny_disk / "store")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(100 * 1024))
    finished, error = fill(store, 400)
    assert 0 < finished < 64
    assert_kept(store, finished, error)
    ballast.unlink()
    with store.open(*key()) as draft:
        draft.write_part(finished, numbers(99), NUMBERS)
        assert draft.read_parts().num_rows == finished * 400 + ROWS


def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    with store.open(*key()) as draft:
        draft.write_part(0, numbers(0), NUMBERS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with store.open(*key()) as draft, pytest.raises(StoreError, match=r"00001\.parquet.*free some space"):
            draft.write_part(1, numbers(1, rows=5000), NUMBERS)
        with store.open(*key()) as draft, pytest.raises(StoreError, match=r"data\.parquet.*free some space"):
            draft.commit({"data": (numbers(1, rows=5000), NUMBERS)}, code_version="1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.find(*key()) is None and not list(store.root.rglob("*.tmp"))
    made: list[int] = []
    with store.open(*key()) as draft:
        assert draft.parts() == [0]
    assert write_in_parts(store, made.append).table().num_rows == PARTS * ROWS


def test_a_store_that_cannot_be_written_says_so():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        message = outcome_of("unprivileged", Path(folder) / "store")
        assert folder in message and "Permission denied" in message and "M3PO_STORE" in message
        os.chmod(folder, 0o755)


def test_a_root_that_is_no_folder_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    store = ArtifactStore(tmp_path / "file")
    with pytest.raises(StoreError, match=r"file.*Not a directory|file.*File exists"), store.open(*key()):
        pass
    assert list(store.list()) == []
