"""Garbage collection: what may go, what must stay, and the removal itself."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3po_dagster.storage.artifact import MANIFEST, Artifact, load
from m3po_dagster.storage.draft import listed, part_of
from m3po_dagster.storage.errors import Busy
from m3po_dagster.storage.filesystem import LOCK
from m3po_dagster.storage.names import ArtifactKey

if TYPE_CHECKING:
    from m3po_dagster.storage.bucket_folder import Disk

ADAPTER_ASSETS = ("adapter", "lora_adapter")


@dataclass(frozen=True)
class Removal:
    """One thing that a collection removes, or would remove."""

    key: ArtifactKey
    bytes: int
    reason: str


@dataclass(frozen=True)
class DraftInfo:
    """A folder without a valid manifest: work under way, or left behind by a crash."""

    key: ArtifactKey
    bytes: int
    parts: int
    modified: float


def draft_info(disk: "Disk", key: ArtifactKey) -> DraftInfo:
    """Size in bytes, number of part files, and time of the last change (seconds since 1970) of an unfinished folder."""
    files = disk.files(key.folder)
    times = [info.mtime_ns / 1e9 for info in files.values()]
    parts = len({index for name in files if (index := part_of(name)) is not None})
    return DraftInfo(key, sum(info.size for info in files.values()), parts, max(times, default=0.0))


def reachable(artifacts: Iterable[Artifact], keep: set[ArtifactKey]) -> set[ArtifactKey]:
    """What must stay: `keep`, every adapter, and all that the manifests of either lead back to."""
    known = {artifact.key: artifact for artifact in artifacts}
    pending = [key for key in known if key in keep or key.asset in ADAPTER_ASSETS]
    needed: set[ArtifactKey] = set()
    while pending:
        key = pending.pop()
        if key in needed or key not in known:
            continue
        needed.add(key)
        for ref in known[key].manifest.inputs.values():
            pending.append(ArtifactKey(ref.asset, ref.partition, ref.fingerprint))
    return needed


def collect(
    disk: "Disk", keys: list[ArtifactKey], keep: set[ArtifactKey], older_than: float, dry_run: bool
) -> list[Removal]:
    """Remove what `reachable` doesn't name and drafts nobody works on, if older than `older_than` seconds.

    Young ones stay because a run commits an artifact before Dagster hears of it. A folder that somebody holds is
    left alone. The manifest goes first: an artifact half removed is no artifact.
    """
    artifacts = dict(zip(keys, disk.map(lambda key: load(disk, key), keys), strict=True))
    needed = reachable((artifact for artifact in artifacts.values() if artifact), keep)
    before = time.time() - older_than
    removals = []
    found = disk.map(lambda item: _removal(disk, *item, needed, before), artifacts.items())
    for (key, artifact), removal in zip(artifacts.items(), found, strict=True):
        if removal is None:
            continue
        try:
            lock = disk.lock(key.folder)
        except Busy:
            continue
        try:
            now = load(disk, key)
            if (now is None) != (artifact is None):
                continue  # it was committed, or removed, since it was looked at
            removals.append(removal)
            if not dry_run:
                _remove(disk, key, now if key in needed else None)
        finally:
            lock.release()
        disk.remove_empty(key.folder)
    return removals


def _removal(
    disk: "Disk", key: ArtifactKey, artifact: Artifact | None, needed: set[ArtifactKey], before: float
) -> Removal | None:
    if artifact is None:
        draft = draft_info(disk, key)
        return Removal(key, draft.bytes, "abandoned draft") if draft.modified < before else None
    if artifact.manifest.created.timestamp() >= before:
        return None
    if key not in needed:
        size = sum(info.size for info in disk.files(key.folder).values())
        return Removal(key, size, "neither current nor needed by what is kept or by an adapter")
    files = disk.files(key.folder)
    size = sum(files[name].size for name in files.keys() - listed(artifact.manifest))
    return Removal(key, size, "leftovers of its making") if size else None


def _remove(disk: "Disk", key: ArtifactKey, kept: Artifact | None) -> None:
    if not kept:
        disk.remove(f"{key.folder}/{MANIFEST}")
    disk.clear(key.folder, keep=listed(kept.manifest) if kept else {LOCK})
