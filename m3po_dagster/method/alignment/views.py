"""Views of an image, the whole and crops of it, each encoded once a batch (paper, section 3.3)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    from PIL import Image


class ImageEncoder(Protocol):
    """Makes numbers of images."""

    def encode_images(self, images: "Iterable[Image.Image]") -> np.ndarray:
        """One entry an image along the first axis; the images are taken one by one."""
        ...


def encode_views(
    encoder: ImageEncoder, prompts: Sequence[Prompt], view: Callable[["Image.Image"], Iterable["Image.Image"]]
) -> dict[Path, np.ndarray]:
    """Image path -> what `encoder` makes of its views, one entry a view along the first axis, each image once.

    `view` gives the same number of views for every image. Images that can't be read are left out.
    """
    read: list[Path] = []

    def views() -> Iterator["Image.Image"]:
        for path, prompt in {prompt.image_path: prompt for prompt in prompts}.items():
            try:
                image = prompt.open_image()
            except OSError:
                continue
            read.append(path)
            yield from view(image)

    encoded = encoder.encode_images(views())
    return dict(zip(read, np.split(encoded, len(read)), strict=True)) if read else {}


def tile_views(image: "Image.Image", tiles: int) -> Iterator["Image.Image"]:
    """The whole image, then, for `tiles` > 1, its crops."""
    yield image
    if tiles > 1:
        yield from crops(image, tiles)


def crops(image: "Image.Image", tiles: int) -> Iterator["Image.Image"]:
    """The image cut into tiles x tiles, row by row; together they cover every pixel once."""
    width, height = image.size
    across = [column * width // tiles for column in range(tiles + 1)]
    down = [row * height // tiles for row in range(tiles + 1)]
    for top, bottom in pairwise(down):
        for left, right in pairwise(across):
            yield image.crop((left, top, right, bottom))
