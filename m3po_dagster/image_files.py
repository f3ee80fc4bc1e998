"""Where an image named by a dataset or a benchmark lies, never outside the image root."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from m3po_dagster.s3_files.path import S3Path

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What datasets hold. Other decoders of Pillow start programs or are rarely hardened: an image from outside is opened
with these alone."""


class ImageOutsideRoot(ValueError):
    """A path that leads out of the image root; it is never opened."""


class ImageRoot:
    """An image root of which many images are asked for: each folder is resolved once, an image only if it is a link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._resolved = folder.resolve()
        self._inside: dict[Path, bool] = {}

    def locate(self, uri: str) -> Path:
        """As `locate` says."""
        relative = PurePosixPath(uri)
        if "\0" in uri or relative.is_absolute() or ".." in relative.parts:
            raise ImageOutsideRoot(f"{uri!r} is not a path below the image root")
        path = self.folder / relative
        if isinstance(path, S3Path):  # a bucket has no links
            return path
        folder = path.parent if relative.parts else path
        try:
            inside = self._inside.get(folder)
            if inside is None:
                inside = self._inside[folder] = self._holds(folder)
            if os.path.islink(path):  # unlike Path.is_symlink, no error where a name is too long
                inside = self._holds(path)
        except (OSError, RuntimeError) as error:  # a loop of symlinks
            raise ImageOutsideRoot(f"{uri!r} can't be resolved: {error}") from None
        if not inside:
            raise ImageOutsideRoot(f"{uri!r} is a link that leads out of the image root")
        return path

    def _holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._resolved)


class ImageFolders:
    """An image root some of whose prefixes lie in folders of their own: of coco/train2017 here, of sam/images there."""

    def __init__(self, root: Path, folders: Mapping[str, Path] | None = None) -> None:
        self._root = ImageRoot(root)
        # The longest prefix is asked first.
        ordered = sorted((folders or {}).items(), key=lambda item: -len(PurePosixPath(item[0]).parts))
        self._folders = [(PurePosixPath(prefix).parts, ImageRoot(folder)) for prefix, folder in ordered]

    def locate(self, uri: str) -> Path:
        """As `locate` says, below the folder of the longest prefix that the path begins with, or the root."""
        parts = PurePosixPath(uri).parts
        for prefix, root in self._folders:
            if parts[: len(prefix)] == prefix:
                return root.locate("/".join(parts[len(prefix) :]))
        return self._root.locate(uri)


def locate(image_root: Path, uri: str) -> Path:
    """The file that a '/'-separated path relative to the image root names, whether it exists or not.

    Raises ImageOutsideRoot for an absolute path, for '..', for a NUL character and for a symlink that leads out of the
    root.
    """
    return ImageRoot(image_root).locate(uri)
