"""The image of an exported pair: the bytes that were scored, upright, whoever reads them."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from m3po_dagster.image_files import FORMATS
from m3po_dagster.method.prompt import open_upright

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
_ORIENTATION = 0x0112
_UPRIGHT = 1


class ImageProblem(Exception):
    """Why an image can't go out; the message is the reason that is counted."""


@dataclass(frozen=True)
class ExportedImage:
    """An image file as it goes out.

    `content` are the bytes to write; of a file that its EXIF orientation turns (`turned`), they are the upright image
    as PNG, since not every trainer undoes the turn that sampling and judging undid. `suffix` fits `content`. `sha256`
    is the hash of the file itself, by which the dataset knows it.
    """

    path: Path
    sha256: str
    content: bytes
    suffix: str
    turned: bool


def read_image(path: Path, sha256: str) -> ExportedImage:
    """The image at `path`. Raises ImageProblem when it is missing, unreadable, or not the one whose hash is given."""
    from PIL import Image

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ImageProblem("its image file is missing") from None
    except OSError as error:
        raise ImageProblem(f"its image file can't be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ImageProblem("its image file is no longer the one that the pair was made with")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            suffix, turned = _SUFFIXES[image.format], image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
        if turned:
            suffix, content = ".png", _upright(path)
    except OSError:
        raise ImageProblem("its image file can't be decoded") from None
    return ExportedImage(path, sha256, content, suffix, turned)


def _upright(path: Path) -> bytes:
    written = BytesIO()
    open_upright(path).save(written, "PNG")
    return written.getvalue()
