"""An image as the data URL that a served model takes."""

import base64
import io
from pathlib import Path

from m3po_dagster.image_files import FORMATS
from m3po_dagster.method.prompt import open_upright

# What an endpoint takes as it is; anything else is sent as PNG.
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_ORIENTATION = 0x0112


def data_url(path: Path) -> str:
    """The upright image as a data URL: the file's own bytes where they are upright, else a PNG.

    Raises OSError when the image can't be decoded.
    """
    from PIL import Image

    try:
        upright = open_upright(path)
        with Image.open(path, formats=FORMATS) as image:
            plain = image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION, 1) == 1
            media_type = _MEDIA_TYPES.get(image.format) if plain else None
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error
    if media_type:
        content = path.read_bytes()
    else:
        buffer = io.BytesIO()
        upright.save(buffer, format="PNG")
        media_type, content = _MEDIA_TYPES["PNG"], buffer.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
