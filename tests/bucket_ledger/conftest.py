"""A real S3 service for the tests of one module, and a ledger's place in it for each test."""

from pathlib import Path

import machines
import pytest

from m3po_dagster.bucket_ledger.ledger import BucketLedger
from tests.s3_store import BUCKET
from tests.s3_store import server as server


@pytest.fixture
def url(server, request) -> str:
    """A place of this test's own; the copies on machines are `machine`'s."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}/ledger"


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
