"""Which images look like an earlier one of the dataset (section 4.1)."""

from collections.abc import Sequence

import numpy as np

from m3po_dagster.method.filtering.hamming import earlier_within
from m3po_dagster.method.filtering.images_seen import ImagesSeen
from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.settings import FilterSettings

NEAR_DUPLICATE = "near-duplicate image"

LEAST_BITS = 4
"""Hashes with fewer set bits, or fewer unset ones, are those of blank images: they say nothing of what they show."""


def is_telling(phash: np.ndarray) -> np.ndarray:
    """Which of these uint64 perceptual hashes say something of the image; others are like no other image's."""
    bits = np.bitwise_count(phash)
    return (bits >= LEAST_BITS) & (bits <= 64 - LEAST_BITS)


def looks_like(images: ImagesSeen, settings: FilterSettings) -> np.ndarray:
    """For each image the position of the earlier one that it looks like, -1 where there is none; int64.

    The images are gone through in dataset order. One is dropped when its hash is within `near_duplicate.distance` bits
    of the hash of one that was not dropped, and the first such is the one it looks like. Images that image_size or
    image_aspect drop, and hashes that aren't telling, neither drop others nor are dropped. Images added at the end
    change nothing for the earlier ones.
    """
    if settings.near_duplicate is False:
        raise ValueError("near_duplicate is switched off")
    taking_part = is_telling(images.phash)
    for shape in (settings.image_size, settings.image_aspect):
        if shape is not False:
            taking_part &= shape.passes(images.width, images.height)
    position = np.flatnonzero(taking_part)
    hashes, first, which = np.unique(images.phash[position], return_index=True, return_inverse=True)
    # Equal hashes have one fate, but for the first of those that are kept.
    in_order = np.argsort(first)
    earlier = np.empty(len(hashes), dtype=np.int64)
    found = earlier_within(hashes[in_order], settings.near_duplicate.distance)
    earlier[in_order] = np.where(found < 0, in_order, in_order[found])
    like = position[first[earlier[which]]]
    result = np.full(len(images.phash), -1, dtype=np.int64)
    result[position] = np.where(like == position, -1, like)
    return result


class NearDuplicates:
    """The images of some rows that look like an earlier one of the dataset."""

    def __init__(self, sha256: Sequence[str], images: ImagesSeen, settings: FilterSettings) -> None:
        """Of the images with these hashes. Raises ValueError when `images` lacks one: it is of another dataset."""
        position = images.positions(sha256)
        if (position < 0).any():
            missing = sha256[int(np.argmin(position))]
            raise ValueError(f"the dataset's images lack the image with sha256 {missing}; build them from all shards")
        like = looks_like(images, settings)[position]
        self._dropped: dict[str, Dropped] = {}
        for at in np.flatnonzero(like >= 0).tolist():
            other = like[at]
            differ = int(np.bitwise_count(images.phash[position[at]] ^ images.phash[other]))
            first = f"{images.source[other]}#{images.record[other]}"
            self._dropped[sha256[at]] = Dropped(
                NEAR_DUPLICATE, f"looks like the image of {first}: {differ} of 64 bits differ"
            )

    def __call__(self, sha256: str) -> Dropped | None:
        """Why the image with this hash is dropped."""
        return self._dropped.get(sha256)
