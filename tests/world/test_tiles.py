"""Tiles: whose is whose, what their labels say, and crops that hold the whole shape."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.world.tiles import (
    CELL_SIZE,
    COLOURS,
    ROLES,
    SHAPES,
    blank,
    crop,
    labels_from_questions,
    load_tiles,
)

# What a shape of each colour mostly looks like, read off the images themselves.
RGB = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "yellow": (255, 255, 0),
}


def test_no_two_roles_share_an_image_by_number_or_by_pixels():
    numbers = {role: {(tile.split, tile.index) for tile in load_tiles(role)} for role in ROLES}
    pixels = {role: {hashlib.sha256(tile.pixels.tobytes()).digest() for tile in load_tiles(role)} for role in ROLES}
    for one, other in combinations(ROLES, 2):
        assert not numbers[one] & numbers[other]
        assert not pixels[one] & pixels[other]


def test_every_role_shows_every_kind_of_object():
    for role in ROLES:
        tiles = load_tiles(role)
        assert set(tiles.by_kind) == {(colour, shape) for colour in COLOURS for shape in SHAPES}
        assert sum(len(members) for members in tiles.by_kind.values()) == len(tiles)


@pytest.mark.parametrize("role", ["prompts", "test"])
def test_the_colour_label_is_the_colour_in_the_picture(role):
    for tile in load_tiles(role):
        top, left, bottom, right = tile.box
        inside = tile.pixels[top:bottom, left:right].reshape(-1, 3)
        values, counts = np.unique(inside[(inside != tile.background).any(axis=1)], axis=0, return_counts=True)
        assert tuple(values[counts.argmax()]) == RGB[tile.colour], (tile.index, tile.colour)


@pytest.mark.parametrize("role", ["prompts", "test"])
def test_the_shape_label_agrees_with_how_much_of_its_box_the_shape_fills(role):
    # A rectangle fills its box, a circle pi/4 of it, a triangle half; edges are soft and the shapes small.
    filled = {shape: [] for shape in SHAPES}
    for tile in load_tiles(role):
        top, left, bottom, right = tile.box
        if min(bottom - top, right - left) >= 16:
            inside = (tile.pixels[top:bottom, left:right] != tile.background).any(axis=2)
            filled[tile.shape].append(inside.mean())
    assert min(filled["rectangle"]) > 0.95
    assert min(filled["circle"]) > 0.7 and max(filled["circle"]) < 0.95
    assert max(filled["triangle"]) < 0.7


def test_labels_come_from_what_is_affirmed_denied_and_answered():
    questions = [
        "is there a red shape?",
        "is there not a blue shape?",
        "what shape is the blue object?",
        "what color is the circle?",
        "is no circle present?",
        "is there a red shape?",
    ]
    answers = ["no", "no", "triangle", "gray", "yes", "yes"]
    assert labels_from_questions(questions, answers, [1, 1, 2, 3, 4, 5]) == {
        2: ("blue", "triangle"),
        3: ("gray", "circle"),
    }
    with pytest.raises(ValueError, match="image 7: its questions disagree"):
        labels_from_questions(["is there a red shape?", "is there a blue shape?"], ["yes", "yes"], [7, 7])


def test_an_unknown_role_is_refused():
    with pytest.raises(KeyError):
        load_tiles("everyone")


@settings(max_examples=300, deadline=None)
@given(number=st.integers(0, 10_000), seed=st.integers(0, 2**32 - 1), augment=st.booleans())
def test_a_crop_holds_the_whole_shape_at_native_resolution(number, seed, augment):
    tiles = load_tiles("validation").tiles
    tile = tiles[number % len(tiles)]
    cell = crop(tile, np.random.default_rng(seed), augment)
    assert cell.shape == (CELL_SIZE, CELL_SIZE, 3) and cell.dtype == np.uint8
    assert (cell != tile.background).any(axis=2).sum() == (tile.pixels != tile.background).any(axis=2).sum()
    if not augment:
        top, left, bottom, right = tile.box
        shape = tile.pixels[top:bottom, left:right]
        windows = np.lib.stride_tricks.sliding_window_view(cell, shape.shape)[:, :, 0]
        assert (windows == shape).all(axis=(2, 3, 4)).any()


def test_a_blank_cell_is_the_background_alone():
    tile = load_tiles("validation").tiles[0]
    assert (blank(tile) == tile.background).all() and blank(tile).shape == (CELL_SIZE, CELL_SIZE, 3)
