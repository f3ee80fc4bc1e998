"""Which images are too small, too large or too elongated (section 4.1)."""

from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.settings import ImageAspectFilter, ImageSizeFilter

TOO_SMALL = "image too small"
TOO_LARGE = "image side too long"
TOO_ELONGATED = "image too elongated"


def wrong_size(uri: str, width: int, height: int, settings: ImageSizeFilter) -> Dropped | None:
    """Why the image at `uri`, of this upright size in pixels, is dropped."""
    if settings.passes(width, height):
        return None
    if min(width, height) < settings.min_side:
        return Dropped(TOO_SMALL, f"{uri} is {width}x{height}, min_side is {settings.min_side}")
    return Dropped(TOO_LARGE, f"{uri} is {width}x{height}, max_side is {settings.max_side}")


def wrong_aspect(uri: str, width: int, height: int, settings: ImageAspectFilter) -> Dropped | None:
    """Why the image at `uri`, of this upright size in pixels, is dropped."""
    if settings.passes(width, height):
        return None
    return Dropped(TOO_ELONGATED, f"{uri} is {width}x{height}, max_aspect is {settings.max_aspect}")
