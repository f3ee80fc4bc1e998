"""Counts the requests that reach an S3 service, by the name of the operation."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from m3po_dagster.storage.s3 import Bucket
from m3po_dagster.storage.store import ArtifactStore


@contextmanager
def counted(bucket: Bucket | ArtifactStore) -> Iterator[Counter]:
    """The requests that a bucket's client, or a store's, sends while the block runs, retries counted again.

    Counts as they are sent, from whatever thread.
    """
    client = (bucket._disk._bucket if isinstance(bucket, ArtifactStore) else bucket).client
    requests: Counter = Counter()
    one_at_a_time = threading.Lock()

    def note(request, event_name: str, **_: object) -> None:
        with one_at_a_time:
            requests[event_name.rpartition(".")[2]] += 1

    client.meta.events.register("before-send.s3", note)
    try:
        yield requests
    finally:
        client.meta.events.unregister("before-send.s3", note)
