"""What is current, read from Dagster's event log: the one truth; the store holds no second pointer."""

import time
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
from dagster import AssetRecordsFilter, DagsterEventType

from m3po_dagster import run_tags
from m3po_dagster.graph import STAGES, Head, Part
from m3po_dagster.home import ensure_home
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore

FINGERPRINT_METADATA = "fingerprint"
DATA_VERSION_TAG = "dagster/data_version"
IDS_A_QUERY = 100


_WHOLE: dict[str, dict[tuple[str, str, str], float]] = {}
"""Artifacts that were found whole, by store and (asset, partition, fingerprint), with when they were last seen."""

_Seen = dict[int, tuple[str, Head | None]]
_SEEN: dict[tuple[str, str], _Seen] = {}
"""The latest events of each event log and asset, by their id there, with partition and head. An event never changes,
and one that shows pictures is large: what was read once is not read again, so that a sensor can look often."""


def read_heads(instance: dg.DagsterInstance, assets: Iterable[str] = tuple(STAGES)) -> dict[Part, Head]:
    """The latest materialisation of every partition of `assets` that carries a fingerprint."""
    heads: dict[Part, Head] = {}
    for asset in assets:
        for partition, head in _latest(instance, asset).values():
            if head is not None:
                heads[asset, partition] = head
    return heads


def read_studies(instance: dg.DagsterInstance, asset: str) -> dict[Part, str]:
    """The study whose run made each head of a partitioned asset; a head whose run or its tag is gone is left out."""
    key = dg.AssetKey(asset)
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
    if not ids:
        return {}
    wanted = AssetRecordsFilter(asset_key=key, storage_ids=list(ids.values()))
    made_in = {(asset, e.partition_key): e.run_id for e in instance.fetch_materializations(wanted, len(ids)).records}
    runs = instance.get_runs(dg.RunsFilter(run_ids=sorted(set(made_in.values()))))
    studies = {run.run_id: run.tags[run_tags.STUDY] for run in runs if run_tags.STUDY in run.tags}
    return {part: studies[run_id] for part, run_id in made_in.items() if run_id in studies}


def _latest(instance: dg.DagsterInstance, asset: str) -> _Seen:
    key = dg.AssetKey(asset)
    if not STAGES[asset].dimensions:
        return {event.storage_id: _read(event) for event in instance.fetch_materializations(key, limit=1).records}
    ids = instance.event_log_storage.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
    log = _name_of(instance)
    known = _SEEN.get((log, asset), {}) if log else {}
    # An event log that was made anew counts from 1 again: the partition must be the same too.
    seen = {number: known[number] for partition, number in ids.items() if known.get(number, (None,))[0] == partition}
    new = [number for number in ids.values() if number not in seen]
    for start in range(0, len(new), IDS_A_QUERY):
        some = new[start : start + IDS_A_QUERY]
        records = AssetRecordsFilter(asset_key=key, storage_ids=some)
        seen |= {
            event.storage_id: _read(event) for event in instance.fetch_materializations(records, len(some)).records
        }
    if log:
        _SEEN[log, asset] = seen
    return seen


def _name_of(instance: dg.DagsterInstance) -> str | None:
    """Tells event logs apart, also one from another at the same place before; None for one that won't be seen again."""
    if not instance.is_persistent:
        return None
    folder = Path(instance.root_directory)
    return f"{instance.get_ref()!r} {folder.stat().st_ino if folder.is_dir() else ''}"


def _read(event: dg.EventLogRecord) -> tuple[str, Head | None]:
    materialisation = event.asset_materialization
    fingerprint = materialisation.metadata.get(FINGERPRINT_METADATA)
    if fingerprint is None:
        return materialisation.partition or "", None
    tags = materialisation.tags
    head = Head(str(fingerprint.value), tags[DATA_VERSION_TAG], tags.get(run_tags.BLOCKED, ""))
    return materialisation.partition or "", head


def held_heads(instance: dg.DagsterInstance, store: ArtifactStore, often: bool = False) -> dict[Part, Head]:
    """The heads whose artifact the store holds: what was removed from it counts as never made.

    Who looks `often` may see a removal from a store far away a minute late: every look there is paid for.
    """
    heads = read_heads(instance)
    keys = {part: (*part, head.fingerprint) for part, head in heads.items()}
    now, whole = time.monotonic(), _WHOLE.setdefault(store.location, {})
    lasts = store.look_lasts if often else 0.0
    there = {key for key in keys.values() if key in whole and now - whole[key] < lasts}
    # What was whole once can only be removed: that its manifest is still there is enough, and quickly seen.
    seen = store.held(key for key in keys.values() if key in whole and key not in there)
    whole |= dict.fromkeys(seen, now)
    others = {part: key for part, key in keys.items() if key not in there | seen}
    held = set(keys) - set(others)
    for (part, key), artifact in zip(others.items(), store.find_all(others.values()), strict=True):
        whole.pop(key, None)
        if artifact is not None and complete(artifact, store):
            held.add(part)
            # Of one that stands on others, these are looked for each time.
            if not any(ref.asset == "adapter" for ref in artifact.manifest.inputs.values()):
                whole[key] = now
    return {part: head for part, head in heads.items() if part in held}


def complete(artifact: Artifact, store: ArtifactStore) -> bool:
    """Whether the store holds the adapters that an artifact stands on. Lost answers don't matter: scores keep them."""
    stood_on = [ref for ref in artifact.manifest.inputs.values() if ref.asset == "adapter"]
    return all(store.find_all((ref.asset, ref.partition, ref.fingerprint) for ref in stood_on))


def current_heads() -> set[tuple[str, str, str]]:
    """(asset, partition, fingerprint) of everything current on the project's instance."""
    ensure_home()
    with dg.DagsterInstance.get() as instance:
        return {(asset, key, head.fingerprint) for (asset, key), head in read_heads(instance).items()}
