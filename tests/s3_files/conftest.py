import pytest

from tests.s3_files.uploads import BUCKET, be_impatient
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.bucket(BUCKET)
        yield running


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A folder of copies of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("M3PO_CACHE", str(folder))
    return folder


@pytest.fixture
def nobody(own_cache, monkeypatch):
    """A service that is not there, and little patience with it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("m3po_dagster.storage.s3._ATTEMPTS", 1)
    be_impatient(monkeypatch)
