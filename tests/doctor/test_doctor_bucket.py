"""`m3po doctor` over a store in a bucket: reachable, writable, keeping conditional writes; and whole."""

import sys
from pathlib import Path

import pytest

from m3po_dagster.doctor.places import check_bucket
from m3po_dagster.doctor.store import check_store
from m3po_dagster.graph import Head
from m3po_dagster.storage.s3 import Bucket
from tests.s3_requests import counted

sys.path.append(str(Path(__file__).parents[1] / "storage"))
from store_samples import commit

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("name", ["data.parquet", "files/note.txt"])
@pytest.mark.parametrize("how", ["cut", "grown", "gone"])
def test_sizes_are_compared_in_a_bucket_too(store, name, how):
    artifact, other = commit(store), commit(store, "more")
    heads = {(one.key.asset, one.key.partition): Head(one.fingerprint, one.data_version) for one in (artifact, other)}
    with counted(store) as requests:
        sound = check_store(store, heads, False, False, lambda done, of: None)
    assert [finding.level for finding in sound.findings] == ["ok"] and len(sound.survey.whole) == 2
    assert requests["GetObject"] == 2 and not requests["HeadObject"], "the manifests alone are read"
    bucket, at = Bucket(store.location), f"{artifact.key.folder}/{artifact.manifest.attempt}/{name}"
    was = bucket.get(at)[0]
    if how == "gone":
        bucket.remove(at)
    else:
        bucket.put(at, was[:-1] if how == "cut" else was + b"x")
    found = check_store(store, heads, False, False, lambda done, of: None)
    (reason,) = found.survey.damaged.values()
    assert name in reason and ("is missing" if how == "gone" else "bytes were committed") in reason
    repaired = check_store(store, heads, False, True, lambda done, of: None)
    assert list(repaired.repaired) == [artifact.key] and [one.key for one in repaired.survey.whole] == [other.key]
