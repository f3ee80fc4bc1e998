"""Files fetched before they are asked for, from a real service: who asks waits for none, and no room is wasted."""

import random
import time

import pytest

from m3po_dagster.s3_files.ahead import ahead, side_by_side
from m3po_dagster.s3_files.cache import object_cache
from m3po_dagster.s3_files.path import BucketError, as_path
from tests.s3_files.uploads import BUCKET, requests

FILES = 60


@pytest.fixture
def files(server, own_cache, request):
    root = as_path(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")
    client = server.client()
    for number in range(FILES):
        client.put_object(Bucket=BUCKET, Key=f"{root.key}/{number}.png", Body=b"%d" % number)
    return [root / f"{number}.png" for number in range(FILES)]


def settled(asked, operation: str = "GetObject") -> int:
    """Requests once no more come."""
    before = -1
    while before != asked[operation]:
        before = asked[operation]
        time.sleep(0.5)
    return before


@pytest.mark.slow
def test_what_was_fetched_ahead_is_asked_for_once_however_long_ago(files, monkeypatch):
    monkeypatch.setattr(object_cache(), "_fresh_seconds", 0.0)
    with requests() as asked, ahead(files):
        assert settled(asked) == FILES
        assert [file.read_bytes() for file in files] == [b"%d" % number for number in range(FILES)]
        assert [file.read_bytes() for file in random.Random(0).sample(files, FILES)]
        assert asked == {"GetObject": FILES}
    with requests() as asked:
        files[0].read_bytes()
        assert asked == {"HeadObject": 1}
    assert object_cache().plans == []


@pytest.mark.slow
def test_no_more_than_the_window_is_fetched_before_it_is_needed(files):
    with requests() as asked, ahead(files, window=10):
        assert settled(asked) == 10
        files[4].read_bytes()
        assert settled(asked) == 14
        files[30].read_bytes()
        assert settled(asked) == 40
        files[2].read_bytes()
        assert settled(asked) == 40
    assert settled(asked) == 40


@pytest.mark.slow
def test_what_is_fetched_just_now_is_waited_for_and_not_fetched_twice(files):
    with requests() as asked, ahead(files):
        assert [file.read_bytes() for file in files] == [b"%d" % number for number in range(FILES)]
        assert settled(asked) == FILES


@pytest.mark.slow
def test_what_is_missing_is_told_to_who_asks_for_it(files, server):
    server.client().delete_object(Bucket=BUCKET, Key=files[3].key)
    with ahead(files):
        with pytest.raises(FileNotFoundError, match=r"3\.png"):
            files[3].read_bytes()
        assert files[4].read_bytes() == b"4"


@pytest.mark.slow
def test_a_copy_that_another_process_removed_is_fetched_again(files, own_cache):
    with requests() as asked, ahead(files):
        settled(asked)
        for copy in own_cache.rglob("*.png"):
            copy.unlink()
        assert files[5].read_bytes() == b"5" and asked["GetObject"] == FILES + 1


def test_an_outage_is_told_to_who_asks(nobody):
    path = as_path("s3://data/1.png")
    with ahead([path]), pytest.raises(BucketError, match=r"s3://data/1\.png"):
        path.read_bytes()


def test_files_of_this_machine_cost_nothing(tmp_path, own_cache):
    with ahead([tmp_path / "1.png"]):
        pass
    assert not own_cache.exists()


def test_answers_come_in_order_and_the_first_failure_is_raised():
    assert side_by_side(lambda number: number * 2, range(100), waits=True) == [number * 2 for number in range(100)]
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 / number, [2, 1, 0], waits=True)
