"""R_w of every prompt, the losers it may be paired with, and how ties end: what all rules of selection share.

Everything works on a `Block` of (prompts, N) arrays. A tie in MAS goes to the higher log-prob per token, then to fewer
tokens, then to the lower k; a tie in S to the higher confidence in the recipe's scale, then likewise. So the same table
gives the same pairs on every machine. Ties are equal float64 values; nothing is rounded first.
"""

from dataclasses import dataclass

import numpy as np

from m3po_dagster.method.selection_matrix import Block
from m3po_dagster.method.selection_settings import SelectionSettings


def first_best(score: np.ndarray, confidence: np.ndarray, n_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column of each row's highest score, ties to higher confidence, fewer tokens, lower column; and which rows tie.

    All arrays (B, N); -inf marks what can't be taken. A row of -inf alone gives a meaningless column and no tie.
    """
    best = score.argmax(axis=1)
    top = pick(score, best)
    tied = (np.count_nonzero(score == top[:, None], axis=1) > 1) & (top > -np.inf)
    rows = np.flatnonzero(tied)
    if len(rows):
        among = score[rows] == top[rows, None]
        for key in (confidence[rows], -n_tokens[rows]):
            key = np.where(among, key, -np.inf)
            among &= key == key.max(axis=1, keepdims=True)
        best[rows] = among.argmax(axis=1)
    return best, tied


@dataclass(frozen=True)
class Winners:
    """R_w of each prompt of a block (equation 1) and the losers it may be paired with."""

    column: np.ndarray  # (B,) meaningless where `found` is False
    found: np.ndarray  # (B,) False: nothing can be chosen, or what can is below min_chosen_mas
    tied: np.ndarray  # (B,)
    gap: np.ndarray  # (B, N) score of R_w minus score; NaN for unusable candidates
    losers: np.ndarray  # (B, N) True where the candidate is eligible as R_l


def find_winners(block: Block, settings: SelectionSettings) -> Winners:
    """R_w: the highest score among usable candidates that were not cut (equation 1).

    Eligible losers have a score below R_w's by strictly more than min_gap, another text, and a number of tokens no
    further from R_w's than max_length_difference.
    """
    score = block.value if block.can_win is None else np.where(block.can_win, block.value, -np.inf)
    column, tied = first_best(score, block.mean_logp, block.n_tokens)
    top = pick(score, column)
    found = top > -np.inf
    if settings.min_chosen_mas is not None:
        found &= top >= settings.min_chosen_mas
    gap = np.where(found, top, np.nan)[:, None] - block.value
    losers = gap > settings.min_gap
    if block.text is not None:
        losers &= block.text != pick(block.text, column)[:, None]
    if settings.max_length_difference is not None:
        losers &= np.abs(block.n_tokens - pick(block.n_tokens, column)[:, None]) <= settings.max_length_difference
    return Winners(column, found, tied, gap, losers)


def confidence_penalty(logp_gap: np.ndarray, settings: SelectionSettings) -> np.ndarray:
    """max(0, conf(R_w) - conf(R_j) - delta) of equation 2, not clamped with allow_bonus; S = gap - alpha * penalty."""
    excess = logp_gap - settings.delta
    return excess if settings.allow_bonus else np.maximum(excess, 0.0, out=excess)


def pick(array: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The entry of each row at its own column."""
    return array[np.arange(len(columns)), columns]
