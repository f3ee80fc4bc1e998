"""Fixtures for tests of a store in a bucket: a real S3 service for each module, a prefix and a cache for each test."""

import pytest

from m3po_dagster.storage.store import ArtifactStore
from tests.s3_server import s3_server

BUCKET = "store"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running service with an empty bucket."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.bucket(BUCKET)
        yield running


@pytest.fixture
def url(server, request, tmp_path, monkeypatch) -> str:
    """A prefix of this test's own, and a cache of its own on this machine."""
    monkeypatch.setenv("M3PO_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '').replace(' ', '-')}"


@pytest.fixture
def store(url) -> ArtifactStore:
    """The store below that prefix."""
    return ArtifactStore(url)
