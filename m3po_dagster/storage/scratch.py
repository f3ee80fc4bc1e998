"""What one attempt leaves to the next where they share no disk: folders declared whole are copied into the bucket."""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from m3po_dagster.storage.errors import StoreError, explained
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.storage.s3 import Bucket

SECONDS_BETWEEN_LOOKS = 5.0
_INDEX = "scratch.json"
_OBJECTS = "scratch"
_LOG = logging.getLogger(__name__)


@contextmanager
def kept_scratch(
    bucket: Bucket, folder: str, attempt: str, local: Path, whole: str, check: Callable[[], None]
) -> Iterator[Path]:
    """The folder `local` with what the attempt before left, copied into the bucket while the block works in it.

    A folder inside it is copied once it holds a file named `whole`, which is written last and declares that nothing
    in it changes any more; the copy of a folder that is removed goes too. An error that ends the block is followed
    by a last look, so that nothing declared whole is missed. `folder` is the artifact's, `attempt` this attempt's in
    it; `check` raises StoreError once another attempt may have taken over, which may stand on what lies here.
    """
    with explained("make the folder", local):
        local.mkdir(parents=True, exist_ok=True)
    mirror = _Mirror(bucket, f"{folder}/{attempt}", local, whole, check)
    mirror.take_over(folder)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            mirror.look()

    thread = threading.Thread(target=keep, name=f"scratch of {folder}", daemon=True)
    thread.start()
    try:
        yield local
    except BaseException:
        ended.set()
        thread.join()
        mirror.look()
        raise
    finally:
        ended.set()
        thread.join()


class _Mirror:
    """Files are kept by their hash: what two checkpoints share, and what an attempt took over, is sent once."""

    def __init__(self, bucket: Bucket, place: str, local: Path, whole: str, check: Callable[[], None]) -> None:
        self._bucket, self._place, self._local, self._whole, self._check = bucket, place, local, whole, check
        self._kept: dict[str, str] = {}  # hash -> object
        self._seen: dict[str, tuple[int, int]] = {}

    def take_over(self, folder: str) -> None:
        """Fetch what the newest attempt left; what can't be had as it was written is done without."""
        left = [found for found in self._bucket.list(f"{folder}/") if PurePosixPath(found.key).name == _INDEX]
        if not left:
            return
        newest = max(left, key=lambda found: found.modified).key
        try:
            self._fetch(json.loads(self._bucket.get(newest)[0])["files"])
        except (StoreError, ValueError, KeyError, TypeError, AttributeError) as error:
            _LOG.warning("%s can't be used (%s): its work is done again", self._bucket.where(newest), error)
            shutil.rmtree(self._local)
            self._local.mkdir()
            self._kept.clear()

    def _fetch(self, files: dict[str, dict[str, str]]) -> None:
        for name, entry in files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} leads out of the folder")
            target = self._local / name
            with explained("write", target):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._bucket.download(entry["object"], target)
            if file_sha256(target) != entry["sha256"]:
                raise ValueError(f"{name} is not what was written")
            self._kept[entry["sha256"]] = entry["object"]

    def look(self) -> None:
        """Copy what was declared whole since the last look. A service that is away is asked again at the next."""
        try:
            self._check()
            self._copy()
        except FileNotFoundError:
            pass  # a newer checkpoint took the place of this one: the next look finds it
        except (StoreError, OSError) as error:
            _LOG.warning("the checkpoints in %s are not in the bucket yet: %s", self._local, error)

    def _copy(self) -> None:
        folders = sorted(path.parent for path in self._local.rglob(self._whole))
        files = sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()})
        seen = {str(path.relative_to(self._local)): _look_of(path) for path in files}
        if seen == self._seen:
            return
        index, kept = {}, {}
        for name in seen:
            digest = file_sha256(self._local / name)
            at = self._kept.get(digest) or f"{self._place}/{_OBJECTS}/{digest}"
            if digest not in self._kept:
                self._bucket.upload(self._local / name, at)
            index[name], kept[digest] = {"sha256": digest, "object": at}, at
        self._bucket.put(f"{self._place}/{_INDEX}", json.dumps({"files": index}).encode())
        gone = [at for at in self._kept.values() if at not in kept.values() and at.startswith(f"{self._place}/")]
        self._kept, self._seen = kept, seen
        self._bucket.remove_all(gone)


def _look_of(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
