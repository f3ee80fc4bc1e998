"""Which answers a costly judge need not see: those that can become neither R_w nor R_l of any promised recipe.

A cascade scores every answer with the scorers that are loaded here and asks the served ones in rounds, about the most
promising answers first. What is known then bounds the rest. An answer is left out only where the bounds prove that no
grade it could get would make it R_w or R_l (equations 1 to 3), so the pairs are those of asking about all.
`docs/cascade-and-ensemble.md` has the argument.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from m3po_dagster.method.selection_columns import text_codes
from m3po_dagster.method.selection_settings import MAS, RULES_WITH_LOSER_SCORE, SelectionSettings
from m3po_dagster.settings import Settings

NOT_NEEDED = "not judged: can't be R_w or R_l"
"""Status of an answer that a served scorer was not asked about. It is not unscored: its score would change no pair."""

FACTS = ("text", "sum_logp", "n_tokens", "finish_reason")
"""Columns of the candidates that a cascade reads."""

LARGEST_DELTA = 1e6
"""The largest delta that a recipe may name, in nats."""


class CascadeSettings(Settings):
    """The served scorers are asked only about answers that can still become R_w or R_l.

    The pairs are exact for every alpha up to `alpha_max` in the scales of `confidence`, whatever a recipe's delta,
    min_gap, min_chosen_mas and allow_bonus. The less is promised, the fewer answers are asked about.
    """

    alpha_max: float = Field(
        1.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="the largest alpha that the pairs are exact for; a study that selects with a larger one is refused",
    )
    confidence: tuple[Literal["mean", "sum"], ...] = Field(
        ("mean", "sum"),
        min_length=1,
        description="the scales of log P(R | I, Q) that the pairs are exact for; one alone saves more than both",
    )
    round_size: int = Field(
        8,
        ge=1,
        description="answers of a prompt that are asked about before the bounds are looked at again; fewer asks for "
        "less and takes longer. For a listwise judge a multiple of its group_size",
    )

    def why_not(self, selection: SelectionSettings, served: Collection[str]) -> str | None:
        """Why the pairs of a recipe would not be those of judging every answer; None when they are.

        `served` are the columns of served scorers, which answers that were not asked about lack.
        """
        ranks_by = selection.ranks_by
        if ranks_by not in (MAS, *served):
            return None  # a length, or a scorer that runs here: every answer has it
        if ranks_by != MAS or selection.rule == "reward_max_min":
            return f"rule {selection.rule} ranks by {ranks_by}, which not every answer has"
        if selection.rule not in (*RULES_WITH_LOSER_SCORE, "best_only"):
            return f"rule {selection.rule} looks at all answers, so every one needs its MAS"
        for name in ("score_noise", "candidates", "max_length_difference"):
            if getattr(selection, name) != SelectionSettings.model_fields[name].default:
                return f"with {name} an answer can become R_w or R_l that is neither without it"
        if selection.rule not in RULES_WITH_LOSER_SCORE:
            return None
        if selection.alpha > self.alpha_max:
            return f"alpha {selection.alpha:g} is above alpha_max {self.alpha_max:g}"
        if selection.confidence not in self.confidence:
            return f"the scale {selection.confidence!r} is not among judge.cascade.confidence"
        return None


@dataclass(frozen=True)
class AnswerFacts:
    """What is known of a prompt's N answers before any is judged, in their order.

    text: the answers. sum_logp: (N,) log P(R | I, Q) in nats as noted while sampling, NaN where it was not. n_tokens:
    (N,). truncated: (N,) True where the answer was cut at the token limit.
    """

    text: tuple[str, ...]
    sum_logp: np.ndarray
    n_tokens: np.ndarray
    truncated: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, object]]) -> "AnswerFacts":
        """The facts in a prompt's rows of the candidates table (columns FACTS)."""
        return cls(
            text=tuple(row["text"] for row in rows),
            sum_logp=np.array([row["sum_logp"] for row in rows], dtype=np.float64),
            n_tokens=np.array([row["n_tokens"] for row in rows], dtype=np.float64),
            truncated=np.array([row["finish_reason"] == "length" for row in rows], dtype=bool),
        )


class Bounds(NamedTuple):
    """What is known of a prompt's N MAS, as they stand or would stand in the table.

    low, high: (N,) bounds; NaN where an answer can have no MAS. known: (N,) True where the MAS is known; it is both.
    """

    low: np.ndarray
    high: np.ndarray
    known: np.ndarray


class Prospects:
    """What one prompt's N answers can still become, given bounds on their MAS. More knowledge never gives it back."""

    def __init__(self, facts: AnswerFacts, settings: CascadeSettings) -> None:
        """Raises ValueError for an answer whose log-prob was not noted: without it nothing bounds its penalty."""
        if not np.isfinite(facts.sum_logp).all() or not (facts.n_tokens >= 1).all():
            raise ValueError(
                "a cascade needs the log-prob and the number of tokens of every answer before any is judged, and these "
                "candidates lack some: remove judge.cascade, or sample with an engine that notes log-probs"
            )
        self._facts, self._alpha = facts, settings.alpha_max
        self._mean_logp = facts.sum_logp / facts.n_tokens
        scales = {"mean": self._mean_logp, "sum": facts.sum_logp}
        self._confidences = [scales[name] for name in settings.confidence]
        self._text = text_codes(pa.chunked_array([facts.text], pa.string()))
        _, place, count = np.unique(self._text, return_inverse=True, return_counts=True)
        self._alone = count[place] == 1
        # The rounding of S in double precision, where delta and the log-probs are at their largest.
        largest = LARGEST_DELTA + np.abs(facts.sum_logp).max(initial=0.0)
        self._rounding = (1.0 + self._alpha * largest) * 2.0**-48

    def can_win(self, bounds: Bounds) -> np.ndarray:
        """(N,) whether an answer can be R_w: a cut one can't, nor one that a known answer beats, ties decided."""
        low, high, known = bounds
        open_ = ~np.isnan(low) & ~self._facts.truncated
        # Best first: MAS, then log-prob a token, then fewer tokens. The lower k, last to decide, is left open.
        keys = (high, self._mean_logp, -self._facts.n_tokens)
        settled = np.flatnonzero(open_ & known)
        if not len(settled):
            return open_
        best = settled[np.lexsort([key[settled] for key in reversed(keys)])[-1]]
        beaten = np.zeros(len(low), dtype=bool)
        for key in reversed(keys):
            beaten = (key < key[best]) | ((key == key[best]) & beaten)
        return open_ & ~beaten

    def can_lose(self, bounds: Bounds) -> np.ndarray:
        """(N,) whether an answer can be R_l.

        It can't where no R_w can be above it, or where a known answer has the higher S whichever R_w it is taken
        against: MAS no higher and confidence no lower, or MAS lower by more than any penalty could make up.
        """
        low, high, known = bounds
        open_ = ~np.isnan(low)
        reach = high[self.can_win(bounds)].max(initial=-np.inf)
        by = np.flatnonzero(open_ & known)
        above = low - low[by, None]
        ahead = self._alone[by, None] | (self._text == self._text[by, None])
        for confidence in self._confidences:
            behind = confidence - confidence[by, None]
            makes_up = self._alpha * np.maximum(behind, 0.0) + self._rounding
            ahead &= ((behind < 0) & (above >= 0)) | (above > makes_up)
        return open_ & (low < reach) & ~ahead.any(axis=0)

    def next(self, bounds: Bounds, size: int) -> list[int]:
        """The answers to ask about now, at most `size`, in order; none when every one is known or out of the race.

        Taken in turn from the likeliest R_w (highest bound) and the likeliest R_l (lowest bound, most confident).
        """
        low, high, known = bounds
        wins, loses = self.can_win(bounds) & ~known, self.can_lose(bounds) & ~known
        best = np.lexsort((self._facts.n_tokens, -self._mean_logp, -high))
        worst = np.lexsort((self._facts.n_tokens, -self._mean_logp, low))
        turns = zip_longest(best[wins[best]].tolist(), worst[loses[worst]].tolist())
        return list(dict.fromkeys(j for turn in turns for j in turn if j is not None))[:size]
