"""Which answers a costly judge need not see: those that can become neither R_w nor R_l of any promised recipe.

A cascade scores every answer with the scorers that are loaded here and asks the served ones in rounds, about the most
promising answers first. What is known then bounds the rest. An answer is left out only where the bounds prove that no
grade it could get would make it R_w or R_l (equations 1 to 3), so the pairs are those of asking about all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NOT_NEEDED = "not judged: can't be R_w or R_l"
"""Status of an answer that a served scorer was not asked about. It is not unscored: its score would change no pair."""

FACTS = ("text", "sum_logp", "n_tokens", "finish_reason")
"""Columns of the candidates that a cascade reads."""


@dataclass(frozen=True)
class AnswerFacts:
    """What is known of a prompt's N answers before any is judged, in their order.

    text: the answers. sum_logp: (N,) log P(R | I, Q) in nats as noted while sampling. n_tokens: (N,). truncated: (N,)
    True where the answer was cut at the token limit.
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
