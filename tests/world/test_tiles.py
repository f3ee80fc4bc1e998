"""Tiles: whose is whose, what their labels say, and crops that hold the whole shape."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_reader import read_object

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


@pytest.mark.parametrize("role", ROLES)
def test_the_labels_are_what_the_picture_shows(role):
    for tile in load_tiles(role):
        assert read_object(tile.pixels) == f"{tile.colour} {tile.shape}", tile.index


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
