"""A look at everything in a store: what is whole, what is damaged, what is unfinished, what is nobody's."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from m3po_dagster.storage.artifact import Artifact, cut_short, look
from m3po_dagster.storage.collect import DraftInfo, draft_info
from m3po_dagster.storage.draft import listed
from m3po_dagster.storage.errors import Damaged, StoreError
from m3po_dagster.storage.names import ArtifactKey

if TYPE_CHECKING:
    from m3po_dagster.storage.bucket_folder import Disk


@dataclass
class Survey:
    """What `survey` found. Keys with a reason where something is wrong."""

    whole: list[Artifact] = field(default_factory=list)
    damaged: dict[ArtifactKey, str] = field(default_factory=dict)
    unreadable: dict[ArtifactKey, str] = field(default_factory=dict)
    drafts: list[DraftInfo] = field(default_factory=list)
    leftovers: dict[ArtifactKey, list[str]] = field(default_factory=dict)
    lost_inputs: dict[ArtifactKey, list[ArtifactKey]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all whole artifacts."""
        return sum(artifact.manifest.bytes for artifact in self.whole)

    @property
    def formats(self) -> dict[int, int]:
        """Whole artifacts by the version of their manifest's layout."""
        return dict(sorted(Counter(artifact.manifest.format for artifact in self.whole).items()))

    @property
    def libraries(self) -> dict[str, dict[str, int]]:
        """Whole artifacts by the version of each library that was at work."""
        found: dict[str, Counter[str]] = {}
        for artifact in self.whole:
            for name, version in artifact.manifest.libraries.items():
                found.setdefault(name, Counter())[version] += 1
        return {name: dict(versions.most_common()) for name, versions in sorted(found.items())}


def survey(disk: "Disk", keys: Iterable[ArtifactKey], content: bool, advance: Callable[[int, int], None]) -> Survey:
    """Looks at every artifact and draft under `keys`; with `content` reads all bytes of each and hashes them.

    `advance` is told how many of how many are done. Changes nothing. What can't be read for now (rights, a failing
    disk, a later format) is no damage, and is kept apart with its reason.
    """
    found, keys = Survey(), list(keys)
    for number, key in enumerate(keys, 1):
        _look_at(disk, key, content, found)
        advance(number, len(keys))
    there = {artifact.key for artifact in found.whole} | found.damaged.keys() | found.unreadable.keys()
    for artifact in found.whole:
        inputs = (ArtifactKey(ref.asset, ref.partition, ref.fingerprint) for ref in artifact.manifest.inputs.values())
        if lost := [key for key in inputs if key not in there]:
            found.lost_inputs[artifact.key] = lost
    return found


def _look_at(disk: "Disk", key: ArtifactKey, content: bool, found: Survey) -> None:
    try:
        artifact, reason = look(disk, key)
        if reason:
            found.damaged[key] = reason
        elif artifact is None:
            found.drafts.append(draft_info(disk, key))
        else:
            files = disk.files(key.folder)
            sizes = {f"{key.folder}/{name}": info.size for name, info in files.items()}
            if disk.keeps_whole and (reason := cut_short(artifact, sizes.get)):  # else `look` has compared them
                found.damaged[key] = reason
                return
            if content:
                artifact.check_content()
            if names := sorted(set(files) - listed(artifact.manifest)):
                found.leftovers[key] = names
            found.whole.append(artifact)
    except Damaged as error:
        found.damaged[key] = error.reason
    except StoreError as error:
        found.unreadable[key] = str(error)
