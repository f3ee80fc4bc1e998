"""Where an image named by a dataset or a benchmark lies, never outside the image root."""

from pathlib import Path, PurePosixPath


class ImageOutsideRoot(ValueError):
    """A path that leads out of the image root; it is never opened."""


def locate(image_root: Path, uri: str) -> Path:
    """The file that a '/'-separated path relative to the image root names, whether it exists or not.

    Raises ImageOutsideRoot for an absolute path, for '..', for a NUL character and for a symlink that leads out of the
    root.
    """
    relative = PurePosixPath(uri)
    if "\0" in uri or relative.is_absolute() or ".." in relative.parts:
        raise ImageOutsideRoot(f"{uri!r} is not a path below the image root")
    path = image_root / relative
    try:
        inside = path.resolve().is_relative_to(image_root.resolve())
    except (OSError, RuntimeError) as error:  # a loop of symlinks
        raise ImageOutsideRoot(f"{uri!r} can't be resolved: {error}") from None
    if not inside:
        raise ImageOutsideRoot(f"{uri!r} is a link that leads out of the image root")
    return path
