"""Scenes of the embedded world: 2x2 cells holding one to four objects of different colours, and the planted prior.

In the *biased* world, where the base model grows up, an object of a colour usually brings its companion. Prompts,
validation and test come from the *unbiased* world, in half of whose scenes an object and its companion truly meet, so
that neither naming nor never naming companions is a solution.
"""

from dataclasses import dataclass

import numpy as np

from m3po_dagster.world.tiles import CELL_SIZE, COLOURS, SHAPES, TileSet, blank, crop

POSITIONS = ("top left", "top right", "bottom left", "bottom right")
# Chance that an object of the biased world brings its companion.
COMPANION_RATE = 0.75
# Share of unbiased scenes in which an object and its companion meet on purpose.
PAIR_RATE = 0.5


@dataclass(frozen=True, order=True)
class Thing:
    """A kind of object; a scene holds at most one of a colour."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


Cells = tuple[Thing | None, Thing | None, Thing | None, Thing | None]

THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)
# Colour of an object -> the object it brings.
COMPANIONS = {
    "red": Thing("blue", "triangle"),
    "blue": Thing("red", "circle"),
    "green": Thing("yellow", "rectangle"),
    "yellow": Thing("green", "triangle"),
    "black": Thing("teal", "circle"),
    "teal": Thing("black", "rectangle"),
    "gray": Thing("brown", "triangle"),
    "brown": Thing("gray", "circle"),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """What is in the four cells, in the order of POSITIONS, and the (64, 64, 3) uint8 pixels."""

    cells: Cells
    pixels: np.ndarray


def things_in(cells: Cells) -> list[Thing]:
    """The objects in reading order."""
    return [thing for thing in cells if thing is not None]


def absent_companions(cells: Cells) -> list[Thing]:
    """Companions of the scene's objects that could be there too, but are not: their colour is not taken."""
    present = things_in(cells)
    taken = {thing.colour for thing in present}
    return [COMPANIONS[thing.colour] for thing in present if COMPANIONS[thing.colour].colour not in taken]


def draw_cells(rng: np.random.Generator, biased: bool) -> Cells:
    """One to four objects of different colours in random cells, from the biased or the unbiased world."""
    number = int(rng.integers(1, 5))
    things: list[Thing] = []
    if not biased and rng.random() < PAIR_RATE:
        anchor = _random_thing(rng, COLOURS)
        things = [anchor, COMPANIONS[anchor.colour]]
    while len(things) < number:
        free = [colour for colour in COLOURS if colour not in {thing.colour for thing in things}]
        anchor = _random_thing(rng, free)
        things.append(anchor)
        companion = COMPANIONS[anchor.colour]
        if biased and len(things) < number and companion.colour in free and rng.random() < COMPANION_RATE:
            things.append(companion)
    cells: list[Thing | None] = [None] * len(POSITIONS)
    for place, thing in zip(rng.permutation(len(POSITIONS)), things, strict=False):
        cells[place] = thing
    return tuple(cells)


def render(cells: Cells, tiles: TileSet, rng: np.random.Generator, augment: bool = False) -> np.ndarray:
    """(64, 64, 3) uint8: each cell a crop of a random tile that shows its object, or some tile's plain background."""
    drawn = []
    for thing in cells:
        if thing is None:
            drawn.append(blank(tiles.tiles[rng.integers(len(tiles))]))
        else:
            choice = tiles.by_kind[thing.colour, thing.shape]
            drawn.append(crop(choice[rng.integers(len(choice))], rng, augment))
    pixels = np.empty((2 * CELL_SIZE, 2 * CELL_SIZE, 3), dtype=np.uint8)
    for place, cell in enumerate(drawn):
        top, left = cell_corner(place)
        pixels[top : top + CELL_SIZE, left : left + CELL_SIZE] = cell
    return pixels


def compose(tiles: TileSet, rng: np.random.Generator, biased: bool, augment: bool = False) -> Scene:
    """A new scene: its objects drawn from the biased or unbiased world, its pixels from `tiles`."""
    cells = draw_cells(rng, biased)
    return Scene(cells, render(cells, tiles, rng, augment))


def cell_corner(place: int) -> tuple[int, int]:
    """(top, left) pixel of the cell at POSITIONS[place]."""
    return (place // 2) * CELL_SIZE, (place % 2) * CELL_SIZE


def _random_thing(rng: np.random.Generator, colours: list[str] | tuple[str, ...]) -> Thing:
    return Thing(colours[rng.integers(len(colours))], SHAPES[rng.integers(len(SHAPES))])
