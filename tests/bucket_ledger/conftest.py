"""A real S3 service for the tests of one module, and a ledger's place in it for each test."""

from pathlib import Path

import machines
import pytest

from m3po_dagster.bucket_ledger.ledger import BucketLedger
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        running.bucket("ledgers")
        yield running


@pytest.fixture
def url(server, request) -> str:
    return f"s3://ledgers/{request.node.name.replace('[', '-').replace(']', '')}/ledger"


@pytest.fixture
def machine(server):
    """Opens a ledger as a process of a machine does; all are closed while the service is still there."""
    opened = []

    def open_one(url: str, copy: Path, patience: float = 60.0) -> BucketLedger:
        opened.append(machines.machine(url, copy, patience))
        return opened[-1]

    yield open_one
    while opened:
        opened.pop().close()
