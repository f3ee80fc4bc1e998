"""The cache of file hashes: right first, then fast."""

import hashlib
import os
import sqlite3
import time

import pytest

from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.file_facts import FileFacts


@pytest.fixture
def settled(monkeypatch):
    """The clock ten seconds ahead: files written now count as long settled."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10_000_000_000)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_unchanged_file_is_read_once_even_by_the_next_process(tmp_path, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = FileFacts(tmp_path / "cache" / "hashes.sqlite")
    assert [first.sha256(file) for _ in range(3)] == [digest(b"one")] * 3
    assert first.files_read == 1
    first.close()
    second = FileFacts(tmp_path / "cache" / "hashes.sqlite")
    assert second.sha256(file) == digest(b"one")
    assert second.files_read == 0


def test_a_changed_file_is_read_again_even_when_size_and_mtime_are_put_back(tmp_path, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    hashes = FileFacts(tmp_path / "hashes.sqlite")
    hashes.sha256(file)
    before = file.stat()
    time.sleep(0.02)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashes.sha256(file) == digest(b"two")
    assert hashes.files_read == 2


def test_a_file_written_this_moment_is_not_remembered(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    hashes = FileFacts(tmp_path / "hashes.sqlite")
    hashes.sha256(file)
    hashes.sha256(file)
    assert hashes.files_read == 2


def test_a_damaged_cache_is_begun_anew(tmp_path):
    (tmp_path / "hashes.sqlite").write_bytes(b"not a database" * 100)
    (tmp_path / "file").write_bytes(b"one")
    assert FileFacts(tmp_path / "hashes.sqlite").sha256(tmp_path / "file") == digest(b"one")


def test_nothing_of_a_damaged_cache_is_left_beside_the_new_one(tmp_path, monkeypatch):
    """A log that stays would be the new database's; a connection that stays would remove the new one's log."""
    ends = ("", "-wal", "-shm")
    for end in ends:
        (tmp_path / f"hashes.sqlite{end}").write_bytes(b"not a database" * 100)
    real, opened, there = sqlite3.connect, [], []

    def connect(*arguments, **more):
        there.append([end for end in ends if (tmp_path / f"hashes.sqlite{end}").exists()])
        opened.append(real(*arguments, **more))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect)
    (tmp_path / "file").write_bytes(b"one")
    assert FileFacts(tmp_path / "hashes.sqlite").sha256(tmp_path / "file") == digest(b"one")
    assert there == [list(ends), []]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def test_errors_name_the_file(tmp_path):
    hashes = FileFacts(tmp_path / "hashes.sqlite")
    with pytest.raises(FileNotFoundError, match="gone"):
        hashes.sha256(tmp_path / "gone")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        FileFacts(tmp_path / "file" / "hashes.sqlite")
