"""What is current, read from Dagster's event log: the one truth; the store holds no second pointer."""

from collections.abc import Iterable

import dagster as dg
from dagster import AssetRecordsFilter, DagsterEventType

from m3po_dagster.graph import STAGES, Head, Part

FINGERPRINT_TAG = "m3po/fingerprint"
DATA_VERSION_TAG = "dagster/data_version"


def read_heads(instance: dg.DagsterInstance, assets: Iterable[str] = tuple(STAGES)) -> dict[Part, Head]:
    """The latest materialisation of every partition of `assets` that carries a fingerprint."""
    heads: dict[Part, Head] = {}
    for asset in assets:
        key = dg.AssetKey(asset)
        if STAGES[asset].dimensions:
            latest = instance.event_log_storage.get_latest_storage_id_by_partition(
                key, DagsterEventType.ASSET_MATERIALIZATION
            )
            if not latest:
                continue
            records = AssetRecordsFilter(asset_key=key, storage_ids=list(latest.values()))
            events = instance.fetch_materializations(records, limit=len(latest)).records
        else:
            events = instance.fetch_materializations(key, limit=1).records
        for event in events:
            materialisation = event.asset_materialization
            tags = materialisation.tags or {}
            if FINGERPRINT_TAG in tags:
                part = (asset, materialisation.partition or "")
                heads[part] = Head(tags[FINGERPRINT_TAG], tags[DATA_VERSION_TAG])
    return heads


def current_heads() -> set[tuple[str, str, str]]:
    """(asset, partition, fingerprint) of everything current on the instance of DAGSTER_HOME."""
    with dg.DagsterInstance.get() as instance:
        return {(asset, key, head.fingerprint) for (asset, key), head in read_heads(instance).items()}
