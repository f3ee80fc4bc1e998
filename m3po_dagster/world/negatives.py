"""Which absent object to ask about, as POPE does it: at random, a popular one, or the one that usually comes along.

What is popular and what comes along is counted in the biased world, where the base model grew up.
"""

from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from m3po_dagster.world.scenes import COMPANIONS, THINGS, Cells, Thing, draw_cells, things_in

Sampling = Literal["random", "popular", "adversarial"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
# The biased world is counted in this many scenes; enough to separate companions from the rest by far.
COUNTED_SCENES = 20_000


def absent_thing(cells: Cells, sampling: Sampling, rng: np.random.Generator) -> Thing:
    """An object that is not in the scene.

    random: any of them; popular: one of the eight most frequent of the biased world; adversarial: the one that
    co-occurs most with the objects present (sum of its counts beside each of them).
    """
    present = things_in(cells)
    absent = [thing for thing in THINGS if thing not in present]
    frequency, together = biased_counts()
    if sampling == "popular":
        ranked = sorted(THINGS, key=lambda thing: -frequency[THINGS.index(thing)])
        absent = [thing for thing in ranked[: len(COMPANIONS)] if thing not in present]
    elif sampling == "adversarial":
        beside = together[[THINGS.index(thing) for thing in present]].sum(axis=0)
        return max(absent, key=lambda thing: beside[THINGS.index(thing)])
    return absent[rng.integers(len(absent))]


@lru_cache(maxsize=1)
def biased_counts() -> tuple[np.ndarray, np.ndarray]:
    """How many biased scenes hold each of THINGS, (24,), and each two of them together, (24, 24)."""
    rng = np.random.default_rng(0)
    held = np.zeros((COUNTED_SCENES, len(THINGS)), dtype=np.int64)
    for row in held:
        row[[THINGS.index(thing) for thing in things_in(draw_cells(rng, biased=True))]] = 1
    together = held.T @ held
    np.fill_diagonal(together, 0)
    return held.sum(axis=0), together
