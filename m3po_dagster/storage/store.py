"""The artifact store: content-addressed, immutable, resumable.

<root>/<asset>/<partition>/<fingerprint>/parts/00000.parquet ...   while the work goes on
                                         data.parquet, files/...   at commit
                                         manifest.json             last: from then on it is there
In a bucket, all but the manifest and the lock lies in a folder of the attempt that wrote it, which the manifest names.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from m3po_dagster.storage.artifact import MANIFEST, Artifact, load
from m3po_dagster.storage.bucket_folder import BucketFolder, Disk
from m3po_dagster.storage.collect import DraftInfo, Removal, collect, draft_info
from m3po_dagster.storage.draft import UNFINISHED, Draft
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.filesystem import LocalFolder
from m3po_dagster.storage.names import ArtifactKey, check_name, parse_folder
from m3po_dagster.storage.quarantine import SetAside, damage, quarantined, set_aside, whole_artifact
from m3po_dagster.storage.s3 import is_s3
from m3po_dagster.storage.survey import Survey, survey

_SHORTEST_PREFIX = 4


class ArtifactStore:
    """Artifacts under one root, found by (asset, partition, fingerprint) and never overwritten."""

    def __init__(self, root: str | Path) -> None:
        """`root` is a local folder, its file:// URL, or s3://bucket/prefix.

        A folder is made when something is first written, a bucket must be there. Nothing is asked of it yet.
        Raises StoreError for other URLs.
        """
        self._disk: Disk = BucketFolder(str(root)) if is_s3(root) else LocalFolder(root)

    @property
    def location(self) -> str:
        """The folder or the URL that holds the store, for messages and for what else is kept beside it."""
        return self._disk.location

    @property
    def cache_folder(self) -> Path:
        """A local folder for what can be found out again; nothing in it is needed."""
        return self._disk.cache_folder

    @property
    def root(self) -> Path:
        """The folder of a store that is a local one. Raises StoreError for one in a bucket."""
        if isinstance(self._disk, BucketFolder):
            raise StoreError(f"the store {self.location} is no local folder")
        return self._disk.root

    @property
    def look_lasts(self) -> float:
        """Seconds for which what was seen here may be taken to be here still, by who looks often; 0 for a folder."""
        return self._disk.look_lasts

    def exists(self) -> bool:
        """Whether there is anything yet: the folder, or an object in the bucket."""
        return self._disk.exists()

    def find(self, asset: str, partition: str, fingerprint: str) -> Artifact | None:
        """The committed artifact, or None. Raises StoreError for unsafe names and unreadable disks."""
        return load(self._disk, ArtifactKey(asset, partition, fingerprint))

    def find_all(self, keys: Iterable[tuple[str, str, str]]) -> list[Artifact | None]:
        """As `find`, for many: of those in a bucket several are asked for at a time."""
        return self._disk.map(lambda key: load(self._disk, ArtifactKey(*key)), keys)

    def held(self, keys: Iterable[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
        """Those of the artifacts that were found before that are still there; much quicker than finding them."""
        manifests = {f"{ArtifactKey(*key).folder}/{MANIFEST}": key for key in keys}
        return {manifests[path] for path in self._disk.present(manifests)}

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
            there = whole_artifact(self._disk, key, UNFINISHED)  # before all is read, which takes long
            reason = damage(self._disk, key)
            if not reason:
                return None
            place = set_aside(self._disk, lock, key, there, reason)
            return self._disk.where(place)
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
        keys = list(self._keys(asset))
        for key, artifact in zip(keys, self.find_all(keys), strict=True):
            if artifact is None:
                yield draft_info(self._disk, key)

    def resolve(self, prefix: str, assets: Iterable[str] | None = None) -> Artifact:
        """The one committed artifact whose fingerprint begins with `prefix`, among `assets` or all.

        Raises StoreError when there is none, when there are several (it lists them), or for fewer than 4 digits.
        """
        if len(prefix) < _SHORTEST_PREFIX:
            raise StoreError(f"{prefix!r} is too short for a fingerprint: give at least {_SHORTEST_PREFIX} hex digits")
        names = [None] if assets is None else list(assets)
        keys = [key for name in names for key in self._keys(name) if key.fingerprint.startswith(prefix)]
        found = [artifact for artifact in self.find_all(keys) if artifact]
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(f"no artifact in {self.location} has a fingerprint that begins with {prefix!r}")
        matches = ", ".join(f"{a.key.asset}[{a.key.partition}] {a.fingerprint}" for a in found)
        raise StoreError(f"{prefix!r} fits {len(found)} artifacts: {matches}; give more digits")

    def gc(self, keep: set[tuple[str, str, str]], dry_run: bool = True, older_than: float = 3600.0) -> list[Removal]:
        """Remove artifacts that are not in `keep`, nor an adapter, nor needed by either; and abandoned drafts.

        Only what is older than `older_than` seconds goes. Returns what went, or would go in a dry run.
        """
        return collect(self._disk, list(self._keys()), {ArtifactKey(*key) for key in keep}, older_than, dry_run)

    def list(self, asset: str | None = None) -> Iterator[Artifact]:
        """Every committed artifact, of one asset or of all, ordered by asset and partition, oldest first."""
        found = [artifact for artifact in self.find_all(self._keys(asset)) if artifact]
        found.sort(key=lambda a: (a.key.asset, a.key.partition, a.manifest.created))
        yield from found

    def _keys(self, asset: str | None = None) -> Iterator[ArtifactKey]:
        for names in self._disk.artifacts(None if asset is None else check_name("asset", asset)):
            if key := parse_folder(*names):
                yield key
