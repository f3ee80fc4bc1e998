"""What is known of an image: decoded once, just as a prompt will open it, whoever sent the file."""

import hashlib
import json
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from m3po_dagster.datasets.row import (
    IMAGE_MISSING,
    IMAGE_TOO_LARGE,
    IMAGE_UNDECODABLE,
    ImageFacts,
)
from m3po_dagster.image_files import FORMATS

if TYPE_CHECKING:
    from PIL import Image

# What Pillow's decoders raise on hostile files; MemoryError because a header can promise more than there is.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
KIND = "image 2"
"""Which facts are found, and how: another way of finding them needs another name, or old ones count."""


def look_at(path: Path, max_megapixels: float, room: "PixelRoom | None" = None) -> ImageFacts:
    """Hash, upright size and perceptual hash of an image file; what passes here opens later.

    An image whose header promises more than `max_megapixels` million pixels is not decoded; others wait for `room`.
    Never raises for what the file holds. No detail names the file: it is a fact about the content, wherever that lies.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return _decoded(file, sha256, max_megapixels, room or PixelRoom(1 << 62))
    except OSError as error:
        return ImageFacts(problem=IMAGE_MISSING, detail=f"can't be read: {error.strerror or type(error).__name__}")


class PixelRoom:
    """Lets several threads decode at once as long as all their pixels together stay within a bound.

    An image larger than the bound is decoded alone.
    """

    def __init__(self, pixels: int) -> None:
        self._bound, self._held = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for so many pixels."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + pixels <= self._bound)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


def to_json(facts: ImageFacts) -> str:
    """The facts as text, for a cache."""
    return json.dumps(asdict(facts))


def from_json(text: str) -> ImageFacts:
    """The facts that `to_json` wrote."""
    return ImageFacts(**json.loads(text))


def _decoded(file: BinaryIO, sha256: str, max_megapixels: float, room: PixelRoom) -> ImageFacts:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # The size that Pillow warns of is checked below, before any pixel is decoded.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > max_megapixels * 1e6:
                    detail = f"promises {image.width}x{image.height} pixels, max_megapixels is {max_megapixels:g}"
                    return ImageFacts(sha256, problem=IMAGE_TOO_LARGE, detail=detail)
                with room.of(pixels):
                    # In place, and converted only where that changes something: copies of a large image are gigabytes.
                    ImageOps.exif_transpose(image, in_place=True)
                    upright = image if image.mode == "RGB" else image.convert("RGB")
                    upright.load()
                    return ImageFacts(sha256, *upright.size, perceptual_hash(upright))
    except Image.DecompressionBombError:
        return ImageFacts(sha256, problem=IMAGE_TOO_LARGE, detail="promises more pixels than any image is read with")
    except _DECODE_ERRORS as error:
        return ImageFacts(sha256, problem=IMAGE_UNDECODABLE, detail=_told(error))


def _told(error: Exception) -> str:
    """What a decoder says, but for the file's name, which is no fact about its content."""
    said = re.sub(r"<[^>]*>|'[^']*'", "it", str(error).split("\n")[0])
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


def perceptual_hash(image: "Image.Image") -> int:
    """The 64-bit DCT hash (pHash) of an upright RGB image as an unsigned number; alike images differ in few bits."""
    import imagehash

    return int.from_bytes(np.packbits(imagehash.phash(image).hash.ravel()).tobytes(), "big")
