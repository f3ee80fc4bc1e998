"""What a judge believes about a scene, and how well an answer agrees with it: the three aspects of MAS (section 3.3).

A reading is one probability table, cells x (24 objects and nothing). Cells are taken as independent. Everything below
is computed from the reading alone, never from a scene's labels, so an imperfect judge errs as a real one would.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from m3po_dagster.world.language import YES_NO_KINDS, Claim, Claims, Question
from m3po_dagster.world.scenes import POSITIONS, THINGS, Thing

NOTHING = len(THINGS)
# An object that is there, or what is absent, which place is empty, how many objects there are.
Statement = Claim | tuple[Literal["absent", "empty", "count"], str | int]
_INDEX = {thing: i for i, thing in enumerate(THINGS)}


@dataclass(frozen=True, eq=False)
class SceneReading:
    """`cells` is (4, 25): a row a cell as in POSITIONS; a column an object as in THINGS, the last one for nothing."""

    cells: np.ndarray

    def __post_init__(self) -> None:
        if self.cells.shape != (len(POSITIONS), NOTHING + 1) or not np.allclose(self.cells.sum(axis=1), 1.0, atol=1e-5):
            raise ValueError(f"a reading is 4 rows of 25 probabilities, got shape {self.cells.shape}")

    def present(self, thing: Thing) -> float:
        """Probability that some cell shows this object."""
        return float(self._present[_INDEX[thing]])

    def at(self, thing: Thing, position: str) -> float:
        """Probability that the cell at `position` shows this object."""
        return float(self.cells[POSITIONS.index(position), _INDEX[thing]])

    def empty(self, place: str) -> float:
        """Probability that a position (or "image": every position) shows nothing."""
        nothing = self.cells[:, NOTHING]
        return float(np.prod(nothing) if place == "image" else nothing[POSITIONS.index(place)])

    def absent(self, what: str) -> float:
        """Probability that nothing fits "red circle", "red object" or "circle"."""
        fitting = [_INDEX[thing] for thing in THINGS if _matches(thing, what)]
        return float(np.prod(1.0 - self.cells[:, fitting].sum(axis=1).clip(max=1.0)))

    def count(self, number: int) -> float:
        """Probability that exactly `number` cells show an object."""
        return float(self._counts[number]) if number < len(self._counts) else 0.0

    def yes(self, question: Question) -> float:
        """Probability that Yes is right, for a yes/no question."""
        match question.kind:
            case "exists":
                return self.present(question.thing)
            case "is_shape" | "is_colour":
                return self.present(Thing(question.colour, question.shape))
            case "is_count":
                return self.count(question.count)
            case "is_at":
                return self.at(question.thing, question.position)
        raise ValueError(f"not a yes/no question: {question.kind}")

    def belief(self, statement: Statement) -> float:
        """Probability that a statement is true."""
        match statement:
            case Claim(thing=thing, position=position):
                return self.at(thing, position) if position else self.present(thing)
            case ("absent", what):
                return self.absent(what)
            case ("empty", place):
                return self.empty(place)
            case ("count", number):
                return self.count(number)
        raise ValueError(f"not a statement: {statement}")

    def aspects(self, question: Question, claims: Claims) -> dict[str, float]:
        """Relevance, accuracy and adherence of an answer, each in [0, 1]."""
        return {
            "relevance": self.relevance(question, claims),
            "accuracy": self.accuracy(question, claims),
            "adherence": self.adherence(question, claims),
        }

    def relevance(self, question: Question, claims: Claims) -> float:
        """Visual relevance: mean probability of the statements made; for a bare yes or no, that it is right."""
        beliefs = [self.belief(statement) for statement in statements(claims)]
        if not beliefs and question.kind in YES_NO_KINDS:
            return self.accuracy(question, claims)
        return float(np.mean(beliefs)) if beliefs else 0.0

    def accuracy(self, question: Question, claims: Claims) -> float:
        """Semantic accuracy: soft F1 of a description, else probability that the answer to the question is right.

        An answer that leaves the question open gets 0.
        """
        if question.kind == "describe":
            if not claims.present:
                return self.empty("image") if "image" in claims.empty else 0.0
            return 2.0 * self._hits(claims) / (len(claims.present) + self._expected)
        if question.kind in YES_NO_KINDS:
            verdict = implied_verdict(question, claims) if claims.verdict is None else claims.verdict
            if verdict is None:
                return 0.0
            return self.yes(question) if verdict else 1.0 - self.yes(question)
        answers = [statement for statement in statements(claims) if fits(question, statement)]
        if question.kind == "what_at":
            # "There is a red circle." answers for the place that was asked about.
            answers = [Claim(a.thing, question.position) if isinstance(a, Claim) else a for a in answers]
        return float(np.mean([self.belief(answer) for answer in answers])) if answers else 0.0

    def adherence(self, question: Question, claims: Claims) -> float:
        """Instruction adherence: mean of form (share of the answer that is of the kind asked) and completeness.

        Complete is a description that names all that the judge expects, and an answer that gives everything its
        question asks; a form that only looks at what is said would reward leaving things out.
        """
        items = statements(claims)
        pieces = len(items) + len(claims.unparsed)
        asked = 0 if question.short else len({statement for statement in items if fits(question, statement)})
        if claims.verdict is not None and (question.short or question.kind not in YES_NO_KINDS):
            # Elsewhere Yes or No opens its statement; here it stands alone, as the whole answer or out of place.
            pieces += 1
            asked += question.short
        form = asked / pieces if pieces else 1.0
        return (form + self._completeness(question, claims)) / 2.0

    def _completeness(self, question: Question, claims: Claims) -> float:
        items = statements(claims)
        if question.kind == "describe":
            if not claims.present:
                return self.empty("image") if "image" in claims.empty else 0.0
            # Named objects are among the expected ones, so this is at most 1.
            return self._hits(claims) / self._expected if self._expected else 0.0
        if question.kind in YES_NO_KINDS:
            implied = implied_verdict(question, claims)
            if question.short:
                return float(claims.verdict is not None)
            if claims.verdict is None:
                return 0.5 * (implied is not None)
            return 0.5 + 0.5 * (implied is claims.verdict)
        return float(any(fits(question, statement) for statement in items))

    def _hits(self, claims: Claims) -> float:
        # In the order they are named: a set has another one in every process, and the sum another last digit.
        return float(sum(map(self.present, dict.fromkeys(claim.thing for claim in claims.present))))

    @cached_property
    def _present(self) -> np.ndarray:
        return 1.0 - np.prod(1.0 - self.cells[:, :NOTHING], axis=0)

    @cached_property
    def _expected(self) -> float:
        return float(self._present.sum())

    @cached_property
    def _counts(self) -> np.ndarray:
        distribution = np.ones(1)
        for nothing in self.cells[:, NOTHING]:
            distribution = np.convolve(distribution, [nothing, 1.0 - nothing])
        return distribution


def implied_verdict(question: Question, claims: Claims) -> bool | None:
    """The Yes or No that the statements amount to; None when they leave the question open or contradict themselves."""
    verdicts = set()
    for statement in statements(claims):
        if fits(question, statement):
            match question.kind, statement:
                case _, ("absent", _):
                    verdicts.add(False)
                case "is_count", ("count", number):
                    verdicts.add(number == question.count)
                case "is_at", Claim(position=position) if position:
                    verdicts.add(position == question.position)
                case "exists" | "is_shape" | "is_colour", Claim(thing=thing):
                    wanted = question.thing or Thing(question.colour, question.shape)
                    verdicts.add(thing == wanted)
    return verdicts.pop() if len(verdicts) == 1 else None


def fits(question: Question, statement: Statement) -> bool:
    """Whether a statement is of the kind the question asks for, be it true or not."""
    match question.kind, statement:
        case "describe", Claim() | ("empty", "image"):
            return True
        case "exists" | "is_at", Claim(thing=thing):
            return thing == question.thing
        case "exists" | "is_at", ("absent", what):
            return _matches(question.thing, what)
        case "is_shape" | "what_shape", Claim(thing=thing):
            return thing.colour == question.colour
        case "is_shape" | "what_shape", ("absent", what):
            return what == f"{question.colour} object"
        case "is_colour", Claim(thing=thing):
            return thing.shape == question.shape
        case "is_colour", ("absent", what):
            return what == question.shape
        case "count" | "is_count", ("count", _):
            return True
        case "what_at", Claim(position=position):
            return position in (None, question.position)
        case "what_at", ("empty", place):
            return place == question.position
    return False


def statements(claims: Claims) -> list[Statement]:
    """Everything an answer asserts beside its leading yes or no."""
    return [
        *claims.present,
        *(("absent", what) for what in claims.absent),
        *(("empty", place) for place in claims.empty),
        *([] if claims.count is None else [("count", claims.count)]),
    ]


def _matches(thing: Thing, what: str) -> bool:
    return what in (str(thing), f"{thing.colour} object", thing.shape)
