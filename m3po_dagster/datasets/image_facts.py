"""What is known of an image: decoded once, just as a prompt will open it, whoever sent the file."""

import hashlib
import json
import struct
import warnings
import zlib
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
KIND = "image 1"
"""Which facts are found, and how: another way of finding them needs another name, or old ones count."""


def look_at(path: Path, uri: str, max_megapixels: float) -> ImageFacts:
    """Hash, upright size and perceptual hash of an image file; what passes here opens later.

    An image whose header promises more than `max_megapixels` million pixels is not decoded. Never raises for what the
    file holds; `uri` names it in the detail.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return _decoded(file, sha256, uri, max_megapixels)
    except OSError as error:
        return ImageFacts(problem=IMAGE_MISSING, detail=f"{uri} can't be read: {error.strerror or error}")


def to_json(facts: ImageFacts) -> str:
    """The facts as text, for a cache."""
    return json.dumps(asdict(facts))


def from_json(text: str) -> ImageFacts:
    """The facts that `to_json` wrote."""
    return ImageFacts(**json.loads(text))


def _decoded(file: BinaryIO, sha256: str, uri: str, max_megapixels: float) -> ImageFacts:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # The size that Pillow warns of is checked below, before any pixel is decoded.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > max_megapixels * 1e6:
                    detail = f"{uri} promises {image.width}x{image.height} pixels, max_megapixels is {max_megapixels}"
                    return ImageFacts(sha256, problem=IMAGE_TOO_LARGE, detail=detail)
                upright = ImageOps.exif_transpose(image).convert("RGB")
                return ImageFacts(sha256, *upright.size, perceptual_hash(upright))
    except Image.DecompressionBombError as error:
        return ImageFacts(sha256, problem=IMAGE_TOO_LARGE, detail=f"{uri}: {error}")
    except _DECODE_ERRORS as error:
        return ImageFacts(sha256, problem=IMAGE_UNDECODABLE, detail=f"{uri}: {type(error).__name__}: {error}")


def perceptual_hash(image: "Image.Image") -> int:
    """The 64-bit DCT hash (pHash) of an upright RGB image as an unsigned number; alike images differ in few bits."""
    import imagehash

    return int.from_bytes(np.packbits(imagehash.phash(image).hash.ravel()).tobytes(), "big")
