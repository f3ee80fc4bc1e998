"""A file or folder of a bucket as a path, so that whoever reads files reads these too, unchanged.

    path = as_path("s3://bucket/coco/train2017") / "000000000009.jpg"
    path.is_file(), path.read_bytes(), PIL.Image.open(path)

`str(path)` is the URL: it names the file in messages. `os.fspath(path)` is a copy of it on this machine, made when it
is asked for: libraries open that one. So a path costs nothing until somebody reads.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import SCHEME, Bucket, Listed, is_s3

if TYPE_CHECKING:
    from m3po_dagster.s3_files.cache import ObjectCache

_READING = frozenset({"r", "rb", "rt"})

BucketError = StoreError
"""A bucket that can't be asked: no fault of the file, so it is never taken for one."""


class S3Path(PosixPath):
    """A file or folder below s3://bucket. There are no links; what would write is refused, but for `write_once`.

    Where an object is missing OSError is raised, as for files; StoreError where the service can't be asked, so that an
    outage is never taken for a missing file.
    """

    __slots__ = ()

    def __str__(self) -> str:
        if not self.parts or self.parts[0] != f"{SCHEME}:":
            return super().__str__()
        return f"{SCHEME}://" + "/".join(self.parts[1:])

    def __fspath__(self) -> str:
        """The file's copy on this machine. Raises FileNotFoundError where there is no such object; StoreError."""
        return str(self._cache.copy(self))

    def __reduce__(self) -> tuple[type["S3Path"], tuple[str]]:
        return type(self), (str(self),)

    @property
    def bucket(self) -> str:
        """Name of the bucket. Raises FileNotFoundError for what an absolute path was joined to: it is in none."""
        if len(self.parts) < 2 or self.parts[0] != f"{SCHEME}:":
            raise FileNotFoundError(errno.ENOENT, "is in no bucket", str(self))
        return self.parts[1]

    @property
    def key(self) -> str:
        """Key of the object in its bucket; '' for the bucket itself."""
        return "/".join(self.parts[2:])

    @property
    def _cache(self) -> "ObjectCache":
        from m3po_dagster.s3_files.cache import object_cache

        return object_cache()

    @property
    def version(self) -> tuple[int, str]:
        """Size in bytes and ETag, which differs where the content does. Raises FileNotFoundError; StoreError."""
        seen = self._cache.look(self)
        if seen is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return seen.size, seen.etag

    def is_file(self) -> bool:
        """Whether there is such an object. Raises StoreError."""
        return self._cache.look(self) is not None

    def is_dir(self) -> bool:
        """Whether any object lies below. Raises StoreError."""
        return self._cache.is_folder(self)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a file or a folder. Raises StoreError."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """False: a bucket has no links."""
        return False

    def is_absolute(self) -> bool:
        """True: a URL."""
        return True

    def absolute(self) -> "S3Path":
        """The path itself."""
        return self

    def resolve(self, strict: bool = False) -> "S3Path":
        """The path itself: a bucket has no links."""
        return self

    def relative_to(self, other: "S3Path", *more: str) -> PurePosixPath:
        """The path below `other`. Raises ValueError where it isn't below it."""
        return PurePosixPath(*super().relative_to(other, *more).parts)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Of the copy on this machine, which has the object's size and time. Raises FileNotFoundError; StoreError."""
        return os.stat(self)

    def open(self, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        """The copy on this machine, for reading. Raises FileNotFoundError; StoreError."""
        if mode not in _READING:
            self._refuse()
        return open(self, mode, *args, **options)

    def iterdir(self) -> Iterator["S3Path"]:
        """Files and folders right below. Raises NotADirectoryError where nothing is; StoreError."""
        empty = True
        for found in self._bucket().level(self._prefix()):
            name = found.key.rpartition("/")[2] if isinstance(found, Listed) else found
            empty = False
            if name:  # the mark of an empty folder has none
                yield self / name
        if empty:
            raise NotADirectoryError(errno.ENOTDIR, "no folder with objects", str(self))

    def glob(self, pattern: str) -> Iterator["S3Path"]:
        """What lies right below and has such a name. Raises ValueError for a pattern of several parts."""
        if "/" in pattern or "**" in pattern:
            raise ValueError(f"{pattern!r}: only names right below {self} can be searched for")
        return (found for found in self.iterdir() if fnmatchcase(found.name, pattern))

    def files(self) -> Iterator[tuple[str, Listed]]:
        """Every file below with its path from here, but for what is hidden: names and folders that start with a dot.

        A request for each 1000 of them, and one or more for each folder right below. Raises StoreError.
        """
        bucket, prefix = self._bucket(), self._prefix()
        for found in bucket.level(prefix):
            if isinstance(found, Listed):
                some = iter([found])
            else:  # what a dataset had unpacked is hidden, and can be as much as all the rest
                some = iter(()) if found.startswith(".") else bucket.list(f"{prefix}{found}/")
            for one in some:
                relative = one.key[len(prefix) :]
                if not relative.endswith("/") and not any(part.startswith(".") for part in relative.split("/")):
                    yield relative, one

    def survey(self) -> None:
        """Looks at every object below at once, so that `is_file` and `version` ask nothing for a while.

        Raises StoreError.
        """
        self._cache.survey(self)

    def write_once(self, content: bytes) -> None:
        """Writes the object, unless one of that size is there. Raises StoreError."""
        self._cache.write_once(self, content)

    def _bucket(self) -> Bucket:
        return self._cache.bucket(self.bucket)

    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EROFS, "files of a bucket are read, not changed", str(self))

    mkdir = rmdir = unlink = rename = replace = touch = chmod = symlink_to = hardlink_to = _refuse


def as_path(value: str | Path) -> Path:
    """A path of this machine, or of a bucket where the text is s3://bucket/...

    Raises ValueError for a URL that names no bucket, or holds credentials.
    """
    if isinstance(value, Path) or not is_s3(value):
        return Path(value) if isinstance(value, str) else value
    try:
        Bucket(value)
    except StoreError as error:
        raise ValueError(str(error)) from None
    return S3Path(value)


def survey(folders: Iterable[Path]) -> None:
    """Looks at every object below those of the folders that lie in a bucket at once: see `S3Path.survey`."""
    for folder in folders:
        if isinstance(folder, S3Path):
            folder.survey()


def _from_study(value: object, otherwise: ValidatorFunctionWrapHandler) -> Path:
    return as_path(value) if isinstance(value, str) and is_s3(value) else otherwise(value)


DataPath = Annotated[Path, WrapValidator(_from_study)]
"""A path of a study that may be s3://bucket/..."""
