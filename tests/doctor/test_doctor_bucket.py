"""`m3po doctor installation` over a store in a bucket: reachable, writable, and keeping conditional writes."""

import pytest

from m3po_dagster.doctor.places import check_bucket
from m3po_dagster.storage.s3 import Bucket
from tests.s3_server import s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.bucket("store")
        yield running


def test_a_bucket_is_tried_and_left_as_it_was(server):
    found = check_bucket("s3://store/here")
    assert found.level == "ok" and "conditional writes are kept" in found.what
    assert not list(Bucket("s3://store/here").list())


def test_a_service_that_ignores_conditions_is_told(server, monkeypatch):
    monkeypatch.setattr(Bucket, "_put_on_condition", lambda self, key, body, **condition: self.put(key, body))
    found = check_bucket("s3://store/here")
    assert found.level == "problem" and "two runs could commit one result" in found.what
    assert not list(Bucket("s3://store/here").list())


def unconditional_delete(self, key: str, etag: str) -> bool:
    self.remove(key)
    return True


@pytest.mark.parametrize(
    ("method", "instead", "told"),
    [
        ("put_if_absent", lambda self, key, body: self.put(key, body), "If-None-Match on PUT"),
        ("put_if_match", lambda self, key, body, etag: self.put(key, body), "If-Match on PUT"),
        ("put_if_match", lambda self, key, body, etag: None, "If-Match on PUT"),
        ("remove_if_match", unconditional_delete, "If-Match on DELETE"),
        ("remove_if_match", lambda self, key, etag: False, "If-Match on DELETE"),
    ],
    ids=["new ignored", "same ignored", "same refused", "delete ignored", "delete refused"],
)
def test_the_condition_that_is_not_kept_is_named(server, monkeypatch, method, instead, told):
    monkeypatch.setattr(Bucket, method, instead)
    found = check_bucket("s3://store/here")
    assert found.level == "problem" and f"does not keep conditional writes ({told})" in found.what
    assert not list(Bucket("s3://store/here").list())


def test_a_bucket_that_can_not_be_written_is_told(server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    found = check_bucket("s3://store/here")
    assert found.level == "problem" and "check the credentials" in found.what and "wrong-secret" not in str(found)
