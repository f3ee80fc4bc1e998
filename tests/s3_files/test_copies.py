"""Copies on this machine's disk: bounded, whole, shared by processes."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from m3po_dagster.s3_files import copies
from m3po_dagster.s3_files.copies import Copies, cache_bytes
from m3po_dagster.storage.cache_folder import caches
from m3po_dagster.storage.errors import StoreError

AN_HOUR_AGO = time.time() - 3600


def keep(cache: Copies, url: str, content: bytes, etag: str = '"1"', used: float | None = None):
    with cache.new(url) as file:
        file.write_bytes(content)
        path = cache.keep(file, url, etag, 0)
    if used is not None:
        os.utime(path, (used, 0))
    return path


def held(cache: Copies, *urls: str, etag: str = '"1"') -> list[str]:
    return [url for url in urls if cache.find(url, etag, 100)]


def test_a_copy_is_of_one_version_of_one_object(tmp_path):
    cache = Copies(tmp_path, 1000)
    path = keep(cache, "s3://data/a.png", b"x" * 100)
    assert path.read_bytes() == b"x" * 100 and path.suffix == ".png"
    assert cache.find("s3://data/a.png", '"1"', 100) == path and cache.has("s3://data/a.png")
    assert cache.find("s3://data/a.png", '"2"', 100) is None and cache.find("s3://data/b.png", '"1"', 100) is None
    assert not cache.has("s3://data/b.png")


def test_the_longest_unused_go_first_and_what_is_in_use_stays(tmp_path):
    cache = Copies(tmp_path, 1000)
    for number in range(9):
        keep(cache, f"s3://data/{number}", b"x" * 100, used=AN_HOUR_AGO + number)
    assert held(cache, "s3://data/0") == ["s3://data/0"]  # used now
    keep(cache, "s3://data/9", b"x" * 100)
    keep(cache, "s3://data/10", b"x" * 100)
    cache.sweep()
    # 1100 bytes are too many; 900 are left, so that not every new copy has to look for room.
    assert held(cache, *(f"s3://data/{number}" for number in range(11))) == [
        f"s3://data/{number}" for number in (0, *range(3, 11))
    ]


def test_what_was_just_given_away_is_not_removed_however_little_room_there_is(tmp_path):
    cache = Copies(tmp_path, 100)
    keep(cache, "s3://data/old", b"x" * 100, used=AN_HOUR_AGO)
    for number in range(5):
        keep(cache, f"s3://data/{number}", b"x" * 100)
    cache.sweep()
    assert held(cache, "s3://data/old", "s3://data/0", "s3://data/4") == ["s3://data/0", "s3://data/4"]


def test_room_is_made_while_copies_are_added(tmp_path):
    cache = Copies(tmp_path, 10_000)
    for number in range(300):
        keep(cache, f"s3://data/{number}", b"x" * 100, used=AN_HOUR_AGO + number)
    kept = held(cache, *(f"s3://data/{number}" for number in range(300)))
    assert 90 <= len(kept) <= 105 and kept[-1] == "s3://data/299" and cache.bytes_written == 30_000


def test_a_cache_never_takes_more_than_half_of_what_the_disk_has_for_it(tmp_path, monkeypatch):
    cache = Copies(tmp_path, 10**12)
    for number in range(10):
        keep(cache, f"s3://data/{number}", b"x" * 100, used=AN_HOUR_AGO + number)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    cache.sweep()
    assert len(held(cache, *(f"s3://data/{number}" for number in range(10)))) == 4


def test_one_process_sweeps_at_a_time(tmp_path):
    for number in range(5):
        keep(Copies(tmp_path, 1000), f"s3://data/{number}", b"x" * 100, used=AN_HOUR_AGO)
    cache = Copies(tmp_path, 100)
    with open(tmp_path / "objects" / ".sweep", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.sweep()
        assert len(list(tmp_path.rglob("*-100"))) == 5
    cache.sweep()
    assert len(list(tmp_path.rglob("*-100"))) == 0


def test_a_copy_that_is_cut_short_is_none(tmp_path):
    cache = Copies(tmp_path, 1000)
    path = keep(cache, "s3://data/a.png", b"x" * 100)
    os.truncate(path, 60)
    assert cache.find("s3://data/a.png", '"1"', 100) is None and not path.exists()


def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(tmp_path):
    cache = Copies(tmp_path, 1000)
    with pytest.raises(KeyError), cache.new("s3://data/a"):
        raise KeyError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with cache.new("s3://data/a") as fresh, cache.new("s3://data/b") as left:
        os.utime(left, (AN_HOUR_AGO - 60, AN_HOUR_AGO - 60))
        cache.sweep()
        assert fresh.exists() and not left.exists()


def test_a_full_disk_says_what_to_do(tmp_path):
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from m3po_dagster.s3_files.copies import Copies\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with Copies(Path(sys.argv[1]), 10**9).new('s3://data/large.tar') as file:\n"
        "    file.write_bytes(b'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "StoreError: can't keep a copy of s3://data/large.tar" in done.stderr and "M3PO_CACHE" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_environment_says_where_and_how_much(tmp_path, monkeypatch):
    monkeypatch.setenv("M3PO_CACHE", str(tmp_path))
    monkeypatch.setenv("M3PO_CACHE_GB", "0.5")
    assert (caches(), cache_bytes()) == (tmp_path, 500_000_000)
    monkeypatch.delenv("M3PO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("M3PO_CACHE_GB")
    assert (caches(), cache_bytes()) == (tmp_path / "user" / "m3po", 50_000_000_000)
    for wrong in ("lots", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("M3PO_CACHE_GB", wrong)
        with pytest.raises(StoreError, match="M3PO_CACHE_GB"):
            cache_bytes()
