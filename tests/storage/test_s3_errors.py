"""What is said about a service's errors, and which of them are asked again; no service is needed for it."""

import pytest

from m3po_dagster.storage import s3
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import Bucket
from tests.s3_answers import answering


@pytest.fixture
def bucket(monkeypatch) -> Bucket:
    """A bucket of a service that is not there: a request that is not answered by the test fails."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return Bucket("s3://results", patience=0.3)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "RequestTimeTooSkewed", "set this machine's clock"),
        (400, "AuthorizationHeaderMalformed", "set AWS_DEFAULT_REGION to the region of the bucket results"),
        (301, "PermanentRedirect", "set AWS_DEFAULT_REGION to the region of the bucket results"),
        (400, "IllegalLocationConstraintException", "set AWS_DEFAULT_REGION to the region of the bucket results"),
        (403, "AccessDenied", "check the credentials"),
        (404, "NoSuchBucket", "make the bucket results, or name another"),
        (400, "Other", "check the service and its endpoint"),
    ],
)
def test_an_error_says_what_to_do(bucket, tmp_path, status, code, told):
    (tmp_path / "file").write_bytes(b"1")
    with answering(bucket, status, code):
        for ask in (
            lambda: bucket.put("x", b"1"),
            lambda: list(bucket.list()),
            lambda: bucket.upload(tmp_path / "file", "x"),
        ):
            with pytest.raises(StoreError, match=told):
                ask()


def test_what_the_service_lacks_is_not_asked_again(bucket):
    with answering(bucket, 501, "NotImplemented") as refused:
        with pytest.raises(StoreError, match="the service lacks conditional writes"):
            bucket.put_if_absent("x", b"1")
        assert refused == ["PutObject"]


@pytest.mark.parametrize("status", [409, 429, 503])
def test_what_passes_is_asked_again_until_patience_ends(bucket, status, monkeypatch):
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)  # boto3's own
    with answering(bucket, status, "Later") as refused:
        with pytest.raises(StoreError, match="Later"):
            bucket.put_if_absent("x", b"1")
        assert len(refused) > 1
