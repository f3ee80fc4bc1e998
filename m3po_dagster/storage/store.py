"""The artifact store: content-addressed, immutable, resumable.

<root>/<asset>/<partition>/<fingerprint>/parts/00000.parquet ...   while the work goes on
                                         data.parquet, files/...   at commit
                                         manifest.json             last: from then on it is there
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from m3po_dagster.storage.artifact import MANIFEST, Artifact, load
from m3po_dagster.storage.collect import DraftInfo, Removal, collect, draft_info
from m3po_dagster.storage.draft import UNFINISHED, Draft
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.filesystem import LocalFolder
from m3po_dagster.storage.names import ArtifactKey, check_name, parse_folder
from m3po_dagster.storage.quarantine import SetAside, damage, quarantined, set_aside, whole_artifact
from m3po_dagster.storage.survey import Survey, survey

_SHORTEST_PREFIX = 4


class ArtifactStore:
    """Artifacts under one root, found by (asset, partition, fingerprint) and never overwritten."""

    def __init__(self, root: str | Path) -> None:
        """`root` is a local folder or its file:// URL; it is made when something is first written."""
        self._disk = LocalFolder(root)

    @property
    def root(self) -> Path:
        """The folder that holds the store."""
        return self._disk.root

    def find(self, asset: str, partition: str, fingerprint: str) -> Artifact | None:
        """The committed artifact, or None. Raises StoreError for unsafe names and unreadable disks."""
        return load(self._disk, ArtifactKey(asset, partition, fingerprint))

    def holds(self, asset: str, partition: str, fingerprint: str) -> bool:
        """Whether an artifact that was found before is still there; much quicker than finding it."""
        return self._disk.size(f"{ArtifactKey(asset, partition, fingerprint).folder}/{MANIFEST}") is not None

    def open(self, asset: str, partition: str, fingerprint: str) -> Draft:
        """A draft to write under an exclusive lock, as a context manager; entering it raises Busy when it is taken."""
        return Draft(self._disk, ArtifactKey(asset, partition, fingerprint))

    def quarantine(self, asset: str, partition: str, fingerprint: str) -> str | None:
        """Sets a committed artifact aside when, read in full under its lock, it turns out to be damaged.

        Gives the folder it lies in now, or None when it is whole or gone. What is set aside counts as never made.
        Raises Busy when somebody else holds it, StoreError.
        """
        key = ArtifactKey(asset, partition, fingerprint)
        lock = self._disk.lock(key.folder)
        try:
            reason = damage(self._disk, key)
            if not reason:
                return None
            place = set_aside(self._disk, key, whole_artifact(self._disk, key, UNFINISHED), reason)
            return str(self._disk.local(place))
        finally:
            lock.release()
            self._disk.remove_empty(key.folder)

    def survey(self, content: bool, advance: Callable[[int, int], None] = lambda done, of: None) -> Survey:
        """Looks at everything in the store, and with `content` reads and hashes all of it. Changes nothing."""
        return survey(self._disk, self._keys(), content, advance)

    def quarantined(self) -> list[SetAside]:
        """All that was set aside and not removed since."""
        return quarantined(self._disk)

    def drafts(self, asset: str | None = None) -> Iterator[DraftInfo]:
        """Every folder that is not committed: work under way, or left behind by a crash."""
        for key in self._keys(asset):
            if load(self._disk, key) is None:
                yield draft_info(self._disk, key)

    def resolve(self, prefix: str, assets: Iterable[str] | None = None) -> Artifact:
        """The one committed artifact whose fingerprint begins with `prefix`, among `assets` or all.

        Raises StoreError when there is none, when there are several (it lists them), or for fewer than 4 digits.
        """
        if len(prefix) < _SHORTEST_PREFIX:
            raise StoreError(f"{prefix!r} is too short for a fingerprint: give at least {_SHORTEST_PREFIX} hex digits")
        names = [None] if assets is None else list(assets)
        keys = [key for name in names for key in self._keys(name) if key.fingerprint.startswith(prefix)]
        found = [artifact for key in keys if (artifact := load(self._disk, key))]
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(f"no artifact in {self.root} has a fingerprint that begins with {prefix!r}")
        matches = ", ".join(f"{a.key.asset}[{a.key.partition}] {a.fingerprint}" for a in found)
        raise StoreError(f"{prefix!r} fits {len(found)} artifacts: {matches}; give more digits")

    def gc(self, keep: set[tuple[str, str, str]], dry_run: bool = True, older_than: float = 3600.0) -> list[Removal]:
        """Remove artifacts that are not in `keep`, nor an adapter, nor needed by either; and abandoned drafts.

        Only what is older than `older_than` seconds goes. Returns what went, or would go in a dry run.
        """
        return collect(self._disk, list(self._keys()), {ArtifactKey(*key) for key in keep}, older_than, dry_run)

    def list(self, asset: str | None = None) -> Iterator[Artifact]:
        """Every committed artifact, of one asset or of all, ordered by asset and partition, oldest first."""
        found = [artifact for key in self._keys(asset) if (artifact := load(self._disk, key))]
        found.sort(key=lambda a: (a.key.asset, a.key.partition, a.manifest.created))
        yield from found

    def _keys(self, asset: str | None = None) -> Iterator[ArtifactKey]:
        for name in self._disk.children("", folders_only=True) if asset is None else [check_name("asset", asset)]:
            for partition in self._disk.children(name, folders_only=True):
                for fingerprint in self._disk.children(f"{name}/{partition}", folders_only=True):
                    if key := parse_folder(name, partition, fingerprint):
                        yield key
