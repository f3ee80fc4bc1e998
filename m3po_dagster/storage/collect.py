"""Garbage collection: what may go, what must stay, and the removal itself."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from m3po_dagster.storage.artifact import MANIFEST, Artifact, load
from m3po_dagster.storage.draft import listed, part_of
from m3po_dagster.storage.errors import Busy
from m3po_dagster.storage.filesystem import LOCK
from m3po_dagster.storage.names import ArtifactKey

if TYPE_CHECKING:
    from m3po_dagster.storage.bucket_folder import Disk, DiskLock

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
    left alone. The manifest goes first: an artifact half removed is no artifact. What is removed was judged under the
    folder's lock; a dry run takes none, and writes nothing. Raises StoreError when a lock was lost in the middle.
    """
    artifacts = dict(zip(keys, disk.map(lambda key: load(disk, key), keys), strict=True))
    needed = reachable((artifact for artifact in artifacts.values() if artifact), keep)
    before = time.time() - older_than
    removals = []
    found = disk.map(lambda item: _judged(disk, *item, needed, before), artifacts.items())
    for (key, artifact), verdict in zip(artifacts.items(), found, strict=True):
        if verdict is None:
            continue
        if dry_run:
            removal = None if disk.busy(key.folder) else verdict.removal
        else:
            removal = _collected(disk, key, artifact, needed, before)
        if removal:
            removals.append(removal)
    return removals


class _Verdict(NamedTuple):
    """What goes of a folder, all but the files `keep`; and the files that were `seen` when this was found."""

    removal: Removal
    keep: Collection[str]
    seen: Collection[str]


def _judged(
    disk: "Disk", key: ArtifactKey, artifact: Artifact | None, needed: set[ArtifactKey], before: float
) -> _Verdict | None:
    """What may go of the folder of `key`, None when nothing may. The lock in it counts neither as size nor as work."""
    files = {name: info for name, info in disk.files(key.folder).items() if name != LOCK}
    size = sum(info.size for info in files.values())
    if artifact is None:
        if max((info.mtime_ns / 1e9 for info in files.values()), default=0.0) >= before:
            return None
        return _Verdict(Removal(key, size, "abandoned draft"), {LOCK}, files)
    if artifact.manifest.created.timestamp() >= before:
        return None
    if key not in needed:
        return _Verdict(
            Removal(key, size, "neither current nor needed by what is kept or by an adapter"), {LOCK}, files
        )
    keep = listed(artifact.manifest)
    size = sum(files[name].size for name in files.keys() - keep)
    return _Verdict(Removal(key, size, "leftovers of its making"), keep, files) if size else None


def _collected(
    disk: "Disk", key: ArtifactKey, looked_at: Artifact | None, needed: set[ArtifactKey], before: float
) -> Removal | None:
    """Removes what may go of a folder, judged anew under its lock; None when that is nothing, or somebody holds it."""
    try:
        lock = disk.lock(key.folder)
    except Busy:
        return None
    try:
        now = load(disk, key)
        # One that was committed, or removed, since it was looked at is for the next collection.
        same = (now is None) == (looked_at is None)
        verdict = _judged(disk, key, now, needed, before) if same else None
        if verdict:
            _remove(disk, lock, key, verdict)
    finally:
        lock.release()
    disk.remove_empty(key.folder)
    return verdict.removal if verdict else None


def _remove(disk: "Disk", lock: "DiskLock", key: ArtifactKey, verdict: _Verdict) -> None:
    """A collector that slept meanwhile, and lost its lock, must not touch what another writer put there since."""
    if MANIFEST in verdict.seen and MANIFEST not in verdict.keep:
        lock.check()
        disk.remove(f"{key.folder}/{MANIFEST}")
    lock.check()
    disk.clear(key.folder, verdict.keep, verdict.seen)
