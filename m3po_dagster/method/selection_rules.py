"""Which two candidates of a prompt become the pair: the M3P-Score of section 3.5 and the rules it is compared with.

Everything works on a `Block` of (prompts, N) arrays. A tie in MAS goes to the higher log-prob per token, then to fewer
tokens, then to the lower k; a tie in S to the higher confidence in the recipe's scale, then likewise. So the same table
gives the same pairs on every machine. Ties are equal float64 values; nothing is rounded first.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from m3po_dagster.method.selection_matrix import BLOCK_ELEMENTS, Block
from m3po_dagster.method.selection_settings import SelectionSettings

NO_SCORE = "no_scored_candidate"
ONE_CANDIDATE = "one_distinct_candidate"
ALL_CUT = "every_scored_candidate_truncated"
BELOW_MIN = "chosen_below_min_mas"
NO_LOSER = "no_loser_above_min_gap"
SAME_TEXT = "rejected_text_equals_chosen"
REASONS = (NO_SCORE, ONE_CANDIDATE, ALL_CUT, BELOW_MIN, NO_LOSER, SAME_TEXT)

RULES_WITH_LOSER_SCORE = ("m3p", "flipped")


@dataclass(frozen=True)
class Choice:
    """The outcome for a block of B prompts; columns index the block's N candidates, -1 for none."""

    chosen: np.ndarray  # (B,)
    rejected: np.ndarray  # (B,)
    score: np.ndarray  # (B,) S(R_l) of equation 2; NaN for rules without it
    tied: np.ndarray  # (B,) True where several candidates share the top score
    reasons: dict[int, tuple[str, str]]  # prompt of the block without a pair -> reason, detail


def first_best(score: np.ndarray, confidence: np.ndarray, n_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column of each row's highest score, ties to higher confidence, fewer tokens, lower column; and which rows tie.

    All arrays (B, N); -inf marks what can't be taken. A row of -inf alone gives a meaningless column and no tie.
    """
    best = score.argmax(axis=1)
    top = _pick(score, best)
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

    Eligible losers have a score below R_w's by strictly more than min_gap, and another text.
    """
    score = block.value if block.can_win is None else np.where(block.can_win, block.value, -np.inf)
    column, tied = first_best(score, block.mean_logp, block.n_tokens)
    top = _pick(score, column)
    found = top > -np.inf
    if settings.min_chosen_mas is not None:
        found &= top >= settings.min_chosen_mas
    gap = np.where(found, top, np.nan)[:, None] - block.value
    losers = gap > settings.min_gap
    if block.text is not None:
        losers &= block.text != _pick(block.text, column)[:, None]
    return Winners(column, found, tied, gap, losers)


def confidence_penalty(logp_gap: np.ndarray, settings: SelectionSettings) -> np.ndarray:
    """max(0, conf(R_w) - conf(R_j) - delta) of equation 2, not clamped with allow_bonus; S = gap - alpha * penalty."""
    excess = logp_gap - settings.delta
    return excess if settings.allow_bonus else np.maximum(excess, 0.0, out=excess)


def choose(block: Block, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Choice:
    """Apply the settings' rule to a block; `prompt_ids` are the ids of its B prompts (the seed of their draws)."""
    winners = find_winners(block, settings)
    chosen, rejected, score = _RULES[settings.rule](block, winners, prompt_ids, settings)
    without = np.flatnonzero(chosen < 0)
    reasons = {int(row): _reason(block, winners, int(row), settings) for row in without}
    return Choice(chosen, rejected, score, winners.tied, reasons)


Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def _m3p(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Columns:
    confidence = block.confidence(settings.confidence)
    penalty = confidence_penalty(_pick(confidence, winners.column)[:, None] - confidence, settings)
    score = np.where(winners.losers, winners.gap - settings.alpha * penalty, -np.inf)
    rejected, _ = first_best(score, confidence, block.n_tokens)
    best = _pick(score, rejected)
    paired = best > -np.inf
    return np.where(paired, winners.column, -1), np.where(paired, rejected, -1), np.where(paired, best, np.nan)


def _flipped(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Columns:
    chosen, rejected, score = _m3p(block, winners, prompt_ids, settings)
    return rejected, chosen, score


def _best_only(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Columns:
    return np.where(winners.found, winners.column, -1), *_none(len(winners.column))


def _reward_max_min(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Columns:
    score = np.where(winners.losers, winners.gap, -np.inf)
    rejected, _ = first_best(score, block.confidence(settings.confidence), block.n_tokens)
    paired = winners.losers.any(axis=1)
    return np.where(paired, winners.column, -1), np.where(paired, rejected, -1), _none(len(paired))[1]


def _vanilla(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Columns:
    """Uniform over the prompt's pairs that make a preference, so a tied draw costs no prompt its pair."""
    size, width = block.value.shape
    first, second = np.triu_indices(width, k=1)
    chosen, rejected = np.full(size, -1), np.full(size, -1)
    draws = np.array([_draw(settings.seed, prompt_id.as_py())[0] for prompt_id in prompt_ids], dtype=np.uint64)
    can_win = np.ones_like(block.value, dtype=bool) if block.can_win is None else block.can_win
    if settings.min_chosen_mas is not None:
        can_win = can_win & (block.value >= settings.min_chosen_mas)
    step = max(1, BLOCK_ELEMENTS // max(1, len(first)))
    for start in range(0, size if width > 1 else 0, step):
        rows = slice(start, min(start + step, size))
        gap = block.value[rows][:, first] - block.value[rows][:, second]
        forward = (gap > settings.min_gap) & can_win[rows][:, first]
        allowed = forward | ((-gap > settings.min_gap) & can_win[rows][:, second])
        if block.text is not None:
            allowed &= block.text[rows][:, first] != block.text[rows][:, second]
        count = np.count_nonzero(allowed, axis=1)
        nth = (draws[rows] % np.maximum(count, 1).astype(np.uint64)).astype(np.int64)
        drawn = (allowed.cumsum(axis=1, dtype=np.int32) > nth[:, None]).argmax(axis=1)
        swap = ~_pick(forward, drawn)
        better, worse = np.where(swap, second[drawn], first[drawn]), np.where(swap, first[drawn], second[drawn])
        chosen[rows], rejected[rows] = np.where(count > 0, better, -1), np.where(count > 0, worse, -1)
    return chosen, rejected, _none(size)[1]


def _random(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Columns:
    chosen, rejected, score = _vanilla(block, winners, prompt_ids, settings)
    swap = np.array([_draw(settings.seed, prompt_id.as_py())[1] for prompt_id in prompt_ids], dtype=bool)
    return np.where(swap, rejected, chosen), np.where(swap, chosen, rejected), score


_RULES: dict[str, Callable[[Block, Winners, pa.StringArray, SelectionSettings], Columns]] = {
    "m3p": _m3p,
    "flipped": _flipped,
    "best_only": _best_only,
    "reward_max_min": _reward_max_min,
    "vanilla": _vanilla,
    "random": _random,
}


def _draw(seed: int, prompt_id: str) -> tuple[int, bool]:
    """64 random bits and a coin that depend on the seed and the prompt alone, not on other prompts or their order."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big"), bool(digest[8] & 1)


def _pick(array: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return array[np.arange(len(columns)), columns]


def _none(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(size, -1), np.full(size, np.nan)


def _reason(block: Block, winners: Winners, row: int, settings: SelectionSettings) -> tuple[str, str]:
    """Why a prompt has no pair, and the figures that led to it."""
    usable = ~np.isnan(block.value[row])
    n_usable = int(np.count_nonzero(usable))
    if n_usable == 0:
        return NO_SCORE, "no candidate has both a score and a confidence"
    texts = n_usable if block.text is None else len(np.unique(block.text[row][usable]))
    if texts == 1 and settings.rule != "best_only":
        return ONE_CANDIDATE, f"{n_usable} scored, all with one text" if n_usable > 1 else "1 scored"
    if block.can_win is not None and not block.can_win[row].any():
        return ALL_CUT, f"{n_usable} scored, all cut at the token limit"
    if not winners.found[row]:
        best = np.max(block.value[row], where=usable if block.can_win is None else block.can_win[row], initial=-np.inf)
        return BELOW_MIN, f"best score {best:.6g}, min_chosen_mas {settings.min_chosen_mas:.6g}"
    gap = np.nanmax(winners.gap[row])
    if gap > settings.min_gap:
        return SAME_TEXT, "every candidate above min_gap has the chosen one's text"
    return NO_LOSER, f"largest gap {gap:.6g}, min_gap {settings.min_gap:.6g}"
