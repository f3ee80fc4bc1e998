"""Where source_dataset keeps the records of a shard."""

from pathlib import Path

from m3po_dagster.storage.artifact import Artifact

RECORDS = "records"
"""Folder of the artifact with one Parquet file of `datasets.row.ROWS` a shard."""


def records_file(source_dataset: Artifact, shard: str) -> Path:
    """The file with a shard's records. Raises StoreError when the artifact has none."""
    return source_dataset.path(f"{RECORDS}/{shard}.parquet")
