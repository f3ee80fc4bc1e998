"""Reads a scene from its pixels by plain geometry: an oracle that shares no code and no label with the world."""

import numpy as np

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
CODE = np.array([65536, 256, 1])


def read_object(pixels: np.ndarray) -> str | None:
    """ "red circle" for a plain picture (height, width, 3) of one upright shape, None for a plain background."""
    coded = pixels.astype(int) @ CODE
    values, counts = np.unique(coded, return_counts=True)
    if len(values) == 1:
        return None
    pure = {colour: counts[values == np.dot(rgb, CODE)].sum() for colour, rgb in RGB.items()}
    colour = max(pure, key=pure.get)
    background = values[np.argmax(np.where(values == np.dot(RGB[colour], CODE), 0, counts))]
    marks = coded != background
    rows, columns = np.flatnonzero(marks.any(axis=1)), np.flatnonzero(marks.any(axis=0))
    marks = marks[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    half = len(marks) // 2
    if marks[0, 0] and marks[0, -1]:
        return f"{colour} rectangle"
    return f"{colour} {'triangle' if marks[:half].sum() < 0.75 * marks[-half:].sum() else 'circle'}"


def read_scene(pixels: np.ndarray) -> dict[str, str]:
    """Position -> object of a (64, 64, 3) scene, without its empty cells, in reading order."""
    cells = {
        "top left": pixels[:32, :32],
        "top right": pixels[:32, 32:],
        "bottom left": pixels[32:, :32],
        "bottom right": pixels[32:, 32:],
    }
    return {position: name for position, cell in cells.items() if (name := read_object(cell))}
