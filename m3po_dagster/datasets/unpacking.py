"""Images that a dataset's own files hold, written as files of their own: everything that follows opens paths."""

import hashlib
import os
import tempfile
from pathlib import Path

from m3po_dagster.datasets.images import OWN
from m3po_dagster.s3_files.path import S3Path

_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def unpack(content: bytes, root: Path) -> str:
    """Writes an image's bytes below `root`, unless they are there, and gives its path relative to it.

    The name is the hash of the bytes: equal images are one file, and no name in a dataset decides where anything is
    written. Raises OSError naming the path when it can't be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    uri = f"{OWN}/unpacked/{digest[:2]}/{digest}{_suffix(content)}"
    write_once(root / uri, content)
    return uri


def write_once(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; one of that size that is there already stays. Raises OSError; StoreError."""
    if isinstance(path, S3Path):
        path.write_once(content)
        return
    if path.is_file() and path.stat().st_size == len(content):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _suffix(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for signature, suffix in _SIGNATURES if content.startswith(signature)), ".bin")
