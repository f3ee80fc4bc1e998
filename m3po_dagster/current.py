"""What is current, read from Dagster's event log: the one truth; the store holds no second pointer."""

from collections.abc import Iterable

import dagster as dg
from dagster import AssetRecordsFilter, DagsterEventType

from m3po_dagster.graph import STAGES, Head, Part
from m3po_dagster.home import ensure_home
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore

FINGERPRINT_TAG = "m3po/fingerprint"
"""Tag with the first digits of the fingerprint, to search by; tags are short, so the whole one is metadata."""

FINGERPRINT_METADATA = "fingerprint"
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
            fingerprint = materialisation.metadata.get(FINGERPRINT_METADATA)
            if fingerprint is not None:
                part = (asset, materialisation.partition or "")
                heads[part] = Head(str(fingerprint.value), materialisation.tags[DATA_VERSION_TAG])
    return heads


def held_heads(instance: dg.DagsterInstance, store: ArtifactStore) -> dict[Part, Head]:
    """The heads whose artifact the store holds: what was removed from it counts as never made."""
    held = {}
    for part, head in read_heads(instance).items():
        artifact = store.find(*part, head.fingerprint)
        if artifact is not None and complete(artifact, store):
            held[part] = head
    return held


def complete(artifact: Artifact, store: ArtifactStore) -> bool:
    """Whether the store holds the adapters that an artifact stands on. Lost answers don't matter: scores keep them."""
    stood_on = [ref for ref in artifact.manifest.inputs.values() if ref.asset == "adapter"]
    return all(store.find(ref.asset, ref.partition, ref.fingerprint) for ref in stood_on)


def current_heads() -> set[tuple[str, str, str]]:
    """(asset, partition, fingerprint) of everything current on the project's instance."""
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        return {(asset, key, head.fingerprint) for (asset, key), head in read_heads(instance).items()}
