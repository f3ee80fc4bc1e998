"""The ledger of a store, wherever the store is."""

from pathlib import Path

from m3po_dagster.bucket_ledger.ledger import BucketLedger
from m3po_dagster.method.alignment import ledger
from m3po_dagster.storage.cache_folder import cache_folder
from m3po_dagster.storage.s3 import Bucket, is_s3


def opened_ledger(store: str | Path) -> ledger.Ledger:
    """The ledger of a store in a folder or at an s3:// URL. Raises StoreError for a URL that names no bucket."""
    if not is_s3(store):
        return ledger.Ledger(Path(store) / ledger.FOLDER)
    url = Bucket(str(store)).url
    return BucketLedger(f"{url}/{ledger.FOLDER}", cache_folder(url) / ledger.FOLDER)
