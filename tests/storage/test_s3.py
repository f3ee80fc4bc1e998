"""The client of a bucket, and its leases, against a real S3 service."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.lease import Lease
from m3po_dagster.storage.s3 import Bucket
from tests.s3_answers import answering
from tests.s3_requests import counted
from tests.s3_store import BUCKET

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(url):
    return Bucket(url)


def test_of_many_writers_of_one_key_one_wins(bucket):
    bodies = [f"writer {number}".encode() for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda body: bucket.put_if_absent("manifest", body), bodies))
    (winner,) = [body for body, etag in zip(bodies, won, strict=True) if etag]
    assert bucket.get("manifest")[0] == winner


def test_keys_are_relative_to_the_prefix(bucket, server):
    bucket.put("a/b", b"1")
    bucket.put("a/c/d", b"22")
    assert [(found.key, found.size) for found in bucket.list("a/")] == [("a/b", 1), ("a/c/d", 2)]
    assert list(bucket.folders()) == ["a"] and list(bucket.folders("a/")) == ["c"]
    assert bucket.get_range("a/c/d", 1, 1) == b"2" and bucket.get_range("a/c/d", 1, 2) is None
    assert bucket.copy("a/c/d", "a/e") and bucket.get("a/e")[0] == b"22" and not bucket.copy("a/x", "a/y")
    bucket.remove_all(["a/e", "a/never"])
    assert bucket.look("a/e") is None
    bucket.remove("a/b")
    assert bucket.look("a/b") is None and bucket.get("a/b") is None


def test_a_listing_of_more_than_a_page_is_whole(bucket):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: bucket.put(f"many/{number:05d}", b""), range(1003)))
    assert [found.key for found in bucket.list("many/")] == [f"many/{number:05d}" for number in range(1003)]


def test_a_held_lease_is_busy_and_free_once_given_back(bucket):
    held = Lease(bucket, "lock")
    with pytest.raises(Busy) as refused:
        Lease(bucket, "lock")
    assert refused.value.pid and refused.value.host and refused.value.since
    held.release()
    Lease(bucket, "lock").release()
    assert bucket.get("lock") is None


def test_a_kept_lease_outlives_its_seconds_and_one_left_alone_goes_to_one_of_many(bucket):
    held = Lease(bucket, "lock", seconds=2)
    time.sleep(4)
    assert not held.lost
    with pytest.raises(Busy):
        Lease(bucket, "lock", seconds=2)
    held._ended.set()  # its process is gone: nobody renews, nobody gives back
    held._thread.join()

    def take(_):
        try:
            return Lease(bucket, "lock", seconds=30)
        except Busy:
            return None

    found = []
    deadline = time.monotonic() + 30
    while not found and time.monotonic() < deadline:
        with ThreadPoolExecutor(8) as pool:
            found = [lease for lease in pool.map(take, range(8)) if lease]
        time.sleep(0.2)
    (taker,) = found
    assert held.lost
    with pytest.raises(StoreError, match="may be another writer's by now: run again"):
        held.check()
    taker.release()


def test_a_lease_is_lost_to_its_holder_when_somebody_else_wrote_it(bucket):
    held = Lease(bucket, "lock", seconds=1)
    bucket.put("lock", b"{}")
    held._thread.join(timeout=10)
    assert held.lost
    held.release()
    assert bucket.get("lock")[0] == b"{}"  # what is another's is not removed


@pytest.mark.parametrize("url", ["s3://", "s3://bucket/../other", "s3://bucket//x", "s3://bucket/x?region=eu"])
def test_a_url_that_names_no_bucket_is_refused(url):
    with pytest.raises(StoreError, match=r"s3://|empty part"):
        Bucket(url)


def test_a_url_with_credentials_is_refused_without_repeating_them():
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID") as refused:
        Bucket("s3://key:hush@bucket")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_ENDPOINT_URL_S3", "localhost:8333", r"localhost:8333; write http://\.\.\. .* in AWS_ENDPOINT_URL_S3"),
        ("AWS_PROFILE", "nope", r"\(nope\).*; correct AWS_PROFILE"),
        ("AWS_DEFAULT_REGION", "not a region", r"'not a region'.*; correct AWS_DEFAULT_REGION"),
    ],
)
def test_an_environment_that_no_client_can_be_made_from_says_what_to_correct(monkeypatch, variable, value, said):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(StoreError, match=rf"can't ask for s3://somewhere/x: .*{said}"):
        Bucket("s3://somewhere/x").get("key")


def test_a_missing_bucket_says_so(server):
    missing = Bucket("s3://nowhere-to-be-found")
    for ask in (lambda: list(missing.list()), lambda: missing.look("x"), lambda: missing.get("x")):
        with pytest.raises(StoreError, match="make the bucket nowhere-to-be-found"):
            ask()
    with pytest.raises(StoreError, match=r"can't list s3://nowhere-to-be-found/data\.json: "):
        missing.holds("data.json/")


def test_whether_the_bucket_is_there_is_asked_once(bucket):
    with counted(bucket) as requests:
        assert bucket.look("x") is None and bucket.look("y") is None
    assert requests == {"HeadObject": 2, "HeadBucket": 1}


def test_a_conflict_with_another_write_decides_nothing(bucket):
    """Amazon answers so while another conditional write is under way, which may fail."""
    with answering(bucket, 409, "ConditionalRequestConflict", times=1) as refused:
        first = bucket.put_if_absent("x", b"1")
    assert first and refused == ["PutObject"]
    with answering(bucket, 409, "ConditionalRequestConflict", times=1):
        assert bucket.put_if_absent("x", b"2") is None
    with answering(bucket, 409, "ConditionalRequestConflict", times=1):
        second = bucket.put_if_match("x", b"3", first)
    assert second and bucket.get("x")[0] == b"3"
    with answering(bucket, 409, "ConditionalRequestConflict", times=1) as refused:
        assert bucket.remove_if_match("x", second)
    assert bucket.get("x") is None and refused == ["DeleteObject"]


def test_a_conflict_when_a_lease_is_renewed_does_not_lose_it(bucket):
    held = Lease(bucket, "lock")
    with answering(bucket, 409, "ConditionalRequestConflict", times=1) as refused:
        held._renew()
    assert refused == ["PutObject"] and not held.lost
    held.check()
    held.release()
    assert bucket.get("lock") is None


def test_wrong_credentials_say_so_and_are_not_repeated(server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    with pytest.raises(StoreError, match="check the credentials") as refused:
        Bucket(f"s3://{BUCKET}").put("x", b"")
    assert "wrong-secret" not in str(refused.value)


def test_a_write_waits_for_a_service_that_comes_back(server, bucket):
    server.kill()
    started = threading.Timer(3, server.start)
    started.start()
    assert bucket.put_if_absent("patience", b"1")
    started.join()
    assert bucket.get("patience")[0] == b"1"


def test_a_service_that_stays_away_says_so(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"can't look at s3://anywhere/x: .*AWS_ENDPOINT_URL_S3\), then run again"):
        Bucket("s3://anywhere", patience=1).look("x")
