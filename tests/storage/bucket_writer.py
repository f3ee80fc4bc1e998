"""A process that writes the sample artifact into a bucket, for the tests that stop, kill or race it.

    python bucket_writer.py URL LOG LEASE_SECONDS STOP

It waits while another writer is at work, notes each part that it makes in LOG, and prints what came of it. STOP is
`SIGNAL:PLACE`: the signal that it sends itself before it makes a part (0 to 3), or before its manifest (`manifest`).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from store_samples import note, write_in_parts

from m3po_dagster.storage import bucket_folder
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.store import ArtifactStore


def main(url: str, log: str, lease_seconds: str, stop: str = "") -> None:
    """Write the artifact to its end."""
    bucket_folder.LEASE_SECONDS = float(lease_seconds)
    what, _, where = stop.partition(":")
    store = ArtifactStore(url)

    def stopped_at(place: object) -> None:
        if where == str(place):
            os.kill(os.getpid(), signal.Signals[what])

    def made(index: int) -> None:
        stopped_at(index)
        note(Path(log), index)

    commit = store._disk.write_once

    def committed(path: str, text: bytes) -> bool:
        stopped_at("manifest")
        return commit(path, text)

    bucket_folder.BucketFolder.write_once = lambda self, path, text: committed(path, text)
    while True:
        try:
            artifact = write_in_parts(store, made)
            told = {"hash": table_hash(artifact.table()), "attempt": artifact.manifest.attempt}
            break
        except Busy:
            time.sleep(0.05)
        except StoreError as error:
            told = {"error": str(error)}
            break
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
