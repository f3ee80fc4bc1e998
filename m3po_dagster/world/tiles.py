"""The raw material of the embedded world: single-shape images of the PyPI package easy-vqa, labelled and cropped.

The package carries questions and answers, no labels: colour and shape of an image are rebuilt from what its questions
give away. Images that don't give both away, or whose shape doesn't fit a cell of 32 pixels, are left out. Every role
(who may look at which image) has its own images.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

COLOURS = ("black", "gray", "red", "blue", "green", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
TILE_SIZE = 64
CELL_SIZE = 32

Role = Literal["base", "judge", "prompts", "validation", "test"]
# Which easy-VQA split and which of its image numbers a role may see.
ROLES: dict[Role, tuple[str, range]] = {
    "base": ("train", range(2000)),
    "judge": ("train", range(2000, 3000)),
    "prompts": ("train", range(3000, 3700)),
    "validation": ("train", range(3700, 4000)),
    "test": ("test", range(1000)),
}


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of easy-VQA: (64, 64, 3) uint8 pixels, its labels, its plain background and where its shape lies.

    `box` is (top, left, bottom, right) in pixels, bottom and right exclusive.
    """

    split: str
    index: int
    colour: str
    shape: str
    pixels: np.ndarray
    background: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class TileSet:
    """The tiles of one role, also by kind: `by_kind[colour, shape]` is never empty."""

    role: Role
    tiles: tuple[Tile, ...]
    by_kind: dict[tuple[str, str], tuple[Tile, ...]]

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def __len__(self) -> int:
        return len(self.tiles)


def labels_from_questions(questions: list[str], answers: list[str], images: list[int]) -> dict[int, tuple[str, str]]:
    """Image number -> (colour, shape) for every image whose questions give both away.

    A question's answer may name the colour or shape; a question about one that is answered as present, or whose
    negation is denied, gives away the colour or shape it names. Raises ValueError when an image's answers disagree.
    """
    found: dict[int, tuple[set[str], set[str]]] = {}
    for question, answer, image in zip(questions, answers, images, strict=True):
        colours, shapes = found.setdefault(image, (set(), set()))
        words = {answer}
        asked = set(re.findall(r"[a-z]+", question))
        negated = bool(asked & {"not", "no"})
        if answer not in ("yes", "no") or (answer == "yes") != negated:
            words |= asked
        colours.update(words.intersection(COLOURS))
        shapes.update(words.intersection(SHAPES))
    labels = {}
    for image, (colours, shapes) in found.items():
        if len(colours) > 1 or len(shapes) > 1:
            raise ValueError(f"easy-VQA image {image}: its questions disagree: {sorted(colours)}, {sorted(shapes)}")
        if colours and shapes:
            labels[image] = (colours.pop(), shapes.pop())
    return labels


@lru_cache(maxsize=len(ROLES))
def load_tiles(role: Role) -> TileSet:
    """The usable tiles of `role`, in the order of their numbers. Cached: about 0.5 ms an image the first time.

    Raises KeyError for an unknown role and ValueError when a kind of object has no tile left.
    """
    import easy_vqa
    from PIL import Image

    split, numbers = ROLES[role]
    labels = _split_labels(split)
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    tiles = []
    for number in numbers:
        if number not in labels:
            continue
        with Image.open(paths[number]) as image:
            pixels = np.asarray(image.convert("RGB"))
        background, box = locate_shape(pixels)
        if max(box[2] - box[0], box[3] - box[1]) <= CELL_SIZE:
            tiles.append(Tile(split, number, *labels[number], pixels, background, box))
    by_kind = {
        (colour, shape): tuple(tile for tile in tiles if (tile.colour, tile.shape) == (colour, shape))
        for colour in COLOURS
        for shape in SHAPES
    }
    bare = [" ".join(kind) for kind, members in by_kind.items() if not members]
    if bare:
        raise ValueError(f"easy-VQA {split}: no usable tile shows a {', '.join(bare)}; is the package complete?")
    return TileSet(role, tuple(tiles), by_kind)


def locate_shape(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The plain background colour (3,) of a tile and the box (top, left, bottom, right) of all that differs from it."""
    # No shape is as large as half a tile and a bit, so it covers at most one corner: the other three agree.
    background = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0).astype(np.uint8)
    differs = (pixels != background).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    return background, (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def crop(tile: Tile, rng: np.random.Generator, augment: bool = False) -> np.ndarray:
    """A (32, 32, 3) uint8 crop at native resolution, at a random place, that holds the whole shape.

    `augment` also mirrors and transposes it at random, for training.
    """
    top, left, bottom, right = tile.box
    edge = TILE_SIZE - CELL_SIZE
    y = rng.integers(max(0, bottom - CELL_SIZE), min(top, edge) + 1)
    x = rng.integers(max(0, right - CELL_SIZE), min(left, edge) + 1)
    cell = tile.pixels[y : y + CELL_SIZE, x : x + CELL_SIZE]
    if augment:
        flip_rows, flip_columns, transpose = rng.random(3) < 0.5
        cell = cell[::-1] if flip_rows else cell
        cell = cell[:, ::-1] if flip_columns else cell
        cell = cell.swapaxes(0, 1) if transpose else cell
    return cell


def blank(tile: Tile) -> np.ndarray:
    """A (32, 32, 3) uint8 cell of the tile's background colour alone."""
    return np.broadcast_to(tile.background, (CELL_SIZE, CELL_SIZE, 3)).astype(np.uint8)


@lru_cache(maxsize=2)
def _split_labels(split: str) -> dict[int, tuple[str, str]]:
    import easy_vqa

    return labels_from_questions(
        *(easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions())
    )
