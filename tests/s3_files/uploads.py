"""Folders put into a bucket, and requests counted."""

from collections import Counter
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from m3po_dagster.s3_files.cache import ObjectCache, object_cache
from m3po_dagster.s3_files.path import as_path
from m3po_dagster.storage.s3 import Bucket
from tests.s3_requests import counted
from tests.s3_server import S3Server

BUCKET = "data"


def uploaded(server: S3Server, folder: Path, prefix: str) -> Path:
    """The folder in the bucket, its files as they are here."""
    client = server.client()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            key = f"{prefix}/{file.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
    return as_path(f"s3://{BUCKET}/{prefix}")


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that does not answer is not waited for."""
    monkeypatch.setattr("m3po_dagster.s3_files.cache.Bucket", partial(Bucket, patience=0.1))


def requests(cache: ObjectCache | None = None) -> AbstractContextManager[Counter]:
    """How often each operation is asked of the bucket in the block."""
    return counted((cache or object_cache()).bucket(BUCKET))
