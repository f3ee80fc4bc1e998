"""Images for the pages: only what decodes as an image, never larger than a screen."""

import io
import threading
from pathlib import Path

LARGEST_SIDE = 1024
THUMBNAIL_SIDE = 96
LARGEST_FILE = 64 << 20
LARGEST_PIXELS = 40_000_000
AS_IT_IS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
DRAWN_ANEW = ("BMP", "TIFF", "PPM")
_AS_IT_IS_BYTES = 1 << 20
_DECODING = threading.BoundedSemaphore(2)
"""An image may take hundreds of megabytes while it is decoded, and a page asks for many at once."""


class PictureError(ValueError):
    """An image that is not shown; the message says why."""


def picture(path: Path, uri: str, side: int = LARGEST_SIDE) -> tuple[bytes, str]:
    """The bytes of an image and their content type, at most `side` pixels on either side.

    Small files of the web's formats go out as they are, all else is drawn anew; `uri` names it in errors. Raises
    PictureError for a file that is missing, too large or no image.
    """
    from PIL import Image, ImageOps

    try:
        if not path.is_file():
            raise PictureError(f"there is no file {uri!r} below the image root")
        if path.stat().st_size > LARGEST_FILE:
            raise PictureError(f"{uri!r} has {path.stat().st_size} bytes, more than {LARGEST_FILE}")
        content = path.read_bytes()
        with _DECODING, Image.open(io.BytesIO(content), formats=[*AS_IT_IS, *DRAWN_ANEW]) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise PictureError(f"{uri!r} has {image.width} x {image.height} pixels, more than {LARGEST_PIXELS}")
            small = max(image.size) <= side and len(content) <= _AS_IT_IS_BYTES
            if small and image.format in AS_IT_IS:
                image.load()  # what is cut short, and may go on as something else, is not sent
                return content, AS_IT_IS[image.format]
            image.draft("RGB", (side, side))
            # Made small first: turning and converting copy all pixels.
            if image.mode in ("P", "1") or image.mode.startswith("I;16"):
                image = image.convert("RGB")  # thumbnails of these modes are wrong or not made
            image.thumbnail((side, side))
            drawn = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{uri!r} can't be read as an image") from None
    buffer = io.BytesIO()
    drawn.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue(), "image/jpeg"
