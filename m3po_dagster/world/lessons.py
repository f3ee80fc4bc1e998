"""What the base model is taught: questions about biased scenes, answered as noisily as text-only generated data are.

The answers name absent companions (the systematic hallucination that M3PO is to find) and slip in other ways (what
makes the model's own answers differ from each other at temperature 1).
"""

from dataclasses import dataclass, replace

import numpy as np

from m3po_dagster.world.language import (
    KINDS,
    YES_NO_KINDS,
    Kind,
    Question,
    describe,
    true_answer,
)
from m3po_dagster.world.negatives import SAMPLINGS, absent_thing
from m3po_dagster.world.scenes import POSITIONS, THINGS, Cells, Thing, absent_companions, things_in
from m3po_dagster.world.tiles import COLOURS, SHAPES


@dataclass(frozen=True)
class Noise:
    """Rates of the teacher's errors."""

    # An absent companion is added to a description; is affirmed when asked about.
    companion_named: float = 0.6
    companion_affirmed: float = 0.55
    # Each object of a description: wrong colour, wrong shape, left out.
    wrong_colour: float = 0.08
    wrong_shape: float = 0.12
    left_out: float = 0.08
    # Any other answer is wrong.
    slip: float = 0.08


NOISE = Noise()
# The kinds asked beside the description and two "Is there a ...?" of every scene, and how often.
OTHER_KINDS: dict[Kind, float] = {
    "is_shape": 0.28,
    "what_shape": 0.12,
    "count": 0.08,
    "what_at": 0.14,
    "is_count": 0.10,
    "is_at": 0.12,
    "is_colour": 0.16,
}
SHORT_RATE = 0.3


def draw_question(
    kind: Kind, cells: Cells, rng: np.random.Generator, truth: bool | None = None, short: bool = False
) -> Question:
    """A random question of `kind` about what is there; a yes/no one whose true answer is `truth`.

    `truth` None leaves it to a coin. A question about the shape, place or colour of an object is only asked of an
    object that is there.
    """
    things = things_in(cells)
    thing = things[rng.integers(len(things))]
    truth = bool(rng.random() < 0.5) if truth is None else truth
    match kind:
        case "describe" | "count":
            return Question(kind)
        case "what_at":
            return Question(kind, position=POSITIONS[rng.integers(len(POSITIONS))])
        case "what_shape":
            return Question(kind, colour=thing.colour)
        case "exists":
            if not truth:
                thing = absent_thing(cells, SAMPLINGS[rng.integers(len(SAMPLINGS))], rng)
            return Question(kind, thing=thing, in_image=bool(rng.random() < 0.5), short=short)
        case "is_shape":
            shape = thing.shape if truth else _other(rng, SHAPES, thing.shape)
            return Question(kind, colour=thing.colour, shape=shape, short=short)
        case "is_count":
            count = len(things)
            return Question(kind, count=count if truth else _other(rng, (1, 2, 3, 4), count), short=short)
        case "is_at":
            position = POSITIONS[cells.index(thing)]
            return Question(
                kind, thing=thing, position=position if truth else _other(rng, POSITIONS, position), short=short
            )
        case "is_colour":
            alike = {other.colour for other in things if other.shape == thing.shape}
            colour = thing.colour if truth else _other(rng, COLOURS, *alike)
            return Question(kind, shape=thing.shape, colour=colour, short=short)
    raise ValueError(f"unknown kind of question: {kind}; one of {', '.join(KINDS)}")


def draw_turns(
    cells: Cells, rng: np.random.Generator, turns: int = 6, noise: Noise = NOISE
) -> list[tuple[Question, str]]:
    """`turns` >= 3 questions about one scene with noisy answers; first describe, a present and an absent object."""
    others = rng.choice(list(OTHER_KINDS), size=turns - 3, p=list(OTHER_KINDS.values()))
    plan: list[tuple[Kind, bool | None]] = [("describe", None), ("exists", True), ("exists", False)]
    plan += [(str(kind), None) for kind in others]
    lessons = []
    for kind, truth in plan:
        short = kind in YES_NO_KINDS and bool(rng.random() < SHORT_RATE)
        question = draw_question(kind, cells, rng, truth, short)
        lessons.append((question, noisy_answer(cells, question, rng, noise)))
    return lessons


def noisy_answer(cells: Cells, question: Question, rng: np.random.Generator, noise: Noise = NOISE) -> str:
    """The teacher's answer: true, but for the prior and the slips of `noise`."""
    companions = absent_companions(cells)
    if question.kind == "describe":
        return _noisy_description(cells, companions, rng, noise)
    rate = noise.companion_affirmed if question.thing in companions else noise.slip
    if rng.random() >= rate:
        return true_answer(cells, question)
    return true_answer(_misread(cells, question, rng), question)


def _noisy_description(cells: Cells, companions: list[Thing], rng: np.random.Generator, noise: Noise) -> str:
    present = things_in(cells)
    named = []
    for thing in present:
        leave_out, recolour, reshape = rng.random(3) < (noise.left_out, noise.wrong_colour, noise.wrong_shape)
        if recolour:
            taken = {other.colour for other in [*present, *named]}
            thing = replace(thing, colour=_other(rng, COLOURS, *taken))
        if reshape:
            thing = replace(thing, shape=_other(rng, SHAPES, thing.shape))
        if not leave_out or len(present) == 1:
            named.append(thing)
    if companions and rng.random() < noise.companion_named:
        named.append(companions[rng.integers(len(companions))])
    return describe(named or present)


def _misread(cells: Cells, question: Question, rng: np.random.Generator) -> Cells:
    """The scene as one would have to see it to answer wrongly."""
    seen = list(cells)
    filled = [place for place, thing in enumerate(cells) if thing is not None]
    empty = [place for place, thing in enumerate(cells) if thing is None]
    match question.kind:
        case "exists" if question.thing in cells:
            seen[cells.index(question.thing)] = None
        case "exists":
            seen[_pick(rng, empty or filled)] = question.thing
        case "count" | "is_count":
            # Objects are counted one too many as often as one too few.
            if empty and (len(filled) == 1 or rng.random() < 0.5):
                seen[_pick(rng, empty)] = _pick(rng, THINGS)
            else:
                seen[_pick(rng, filled)] = None
        case "what_at":
            place = POSITIONS.index(question.position)
            seen[place] = _other(rng, THINGS, cells[place])
        case "is_shape" | "what_shape":
            place = next(place for place in filled if cells[place].colour == question.colour)
            seen[place] = replace(cells[place], shape=_other(rng, SHAPES, cells[place].shape))
        case "is_at":
            here = cells.index(question.thing)
            there = _other(rng, range(len(cells)), here)
            seen[here], seen[there] = seen[there], seen[here]
        case "is_colour":
            for place in filled:
                if cells[place].shape == question.shape:
                    seen[place] = replace(cells[place], colour=_other(rng, COLOURS, cells[place].colour))
    return tuple(seen)


def _pick(rng: np.random.Generator, choices):
    return choices[rng.integers(len(choices))]


def _other(rng: np.random.Generator, choices, *excluded):
    return _pick(rng, [choice for choice in choices if choice not in excluded])
