"""What is damaged is set aside, never removed: it counts no more, and can still be looked at.

<root>/.quarantine/<asset>/<partition>/<fingerprint>/<time>-<digits>/reason.json   why, when, and what was there
                                                                     ...           the files themselves
"""

import json
import logging
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from m3po_dagster.storage.artifact import MANIFEST, cut_short, look
from m3po_dagster.storage.errors import Damaged, StoreError
from m3po_dagster.storage.filesystem import LOCK
from m3po_dagster.storage.names import ArtifactKey

if TYPE_CHECKING:
    from m3po_dagster.storage.bucket_folder import Disk, DiskLock

QUARANTINE = ".quarantine"
REASON = "reason.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetAside:
    """A folder of the quarantine: where it lies inside the store, why, when (UTC, ISO 8601), and its size."""

    folder: str
    reason: str
    when: str
    bytes: int


def set_aside(disk: "Disk", lock: "DiskLock", key: ArtifactKey, names: Iterable[str], reason: str) -> str:
    """Moves `names`, paths in the folder of `key`, into the quarantine, and gives their new folder in the store.

    For the holder of the folder's `lock`. What is moved first stops counting first. Raises StoreError, also when the
    lock was lost meanwhile: what lies there now may be another writer's.
    """
    lock.check()
    now = datetime.now(UTC)
    place = f"{QUARANTINE}/{key.folder}/{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    names = list(names)
    why = {"reason": reason, "when": now.isoformat(timespec="seconds"), "files": names}
    why |= {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        disk.write(f"{place}/{REASON}", lambda file: file.write((json.dumps(why, indent=1) + "\n").encode()))
    except StoreError as error:
        # A full disk keeps no reason, but moving takes no space.
        _LOG.warning("the reason is not kept: %s", error)
    for name in names:
        lock.check()
        disk.move(f"{key.folder}/{name}", f"{place}/{name}")
    _LOG.warning("%s is damaged (%s) and was set aside in %s", key, reason, disk.where(place))
    return place


def whole_artifact(disk: "Disk", key: ArtifactKey, unfinished: Iterable[str]) -> list[str]:
    """What lies in the folder of `key` but for the work under way in `unfinished`, the manifest first."""
    there = [name for name in disk.children(key.folder) if name not in (LOCK, MANIFEST, *unfinished)]
    return [MANIFEST, *there]


def damage(disk: "Disk", key: ArtifactKey) -> str:
    """What is wrong with a committed artifact, read in full; empty when it is whole or there is none."""
    artifact, reason = look(disk, key)
    if artifact is not None:
        if reason := cut_short(artifact, disk.size):
            return reason
        try:
            artifact.check_content()
        except Damaged as error:
            return error.reason
    return reason


def quarantined(disk: "Disk") -> list[SetAside]:
    """All that was set aside and not removed since."""
    files = disk.files(QUARANTINE)
    found = []
    for folder in sorted({"/".join(name.split("/")[:4]) for name in files if name.count("/") >= 4}):
        here = {name: info.size for name, info in files.items() if name.startswith(f"{folder}/")}
        why = {}
        if f"{folder}/{REASON}" in here:
            try:
                why = json.loads(disk.read(f"{QUARANTINE}/{folder}/{REASON}"))
            except ValueError as error:
                why = {"reason": f"its {REASON} can't be read ({error})"}
        reason, when = why.get("reason", "unknown"), why.get("when", "")
        found.append(SetAside(f"{QUARANTINE}/{folder}", reason, when, sum(here.values())))
    return found
