"""Why a prompt has no pair: one reason each, and the figures that led to it."""

import numpy as np

from m3po_dagster.method.selection_matrix import Block
from m3po_dagster.method.selection_settings import RULES_WITHOUT_REJECTED, SelectionSettings
from m3po_dagster.method.selection_winners import Winners, pick

NO_SCORE = "no_scored_candidate"
ONE_CANDIDATE = "one_distinct_candidate"
ALL_CUT = "every_scored_candidate_truncated"
BELOW_MIN = "chosen_below_min_mas"
NO_LOSER = "no_loser_above_min_gap"
SAME_TEXT = "rejected_text_equals_chosen"
OTHER_LENGTH = "no_loser_of_like_length"
LENGTH_BALANCE = "left_out_for_length_balance"
REASONS = (NO_SCORE, ONE_CANDIDATE, ALL_CUT, BELOW_MIN, NO_LOSER, SAME_TEXT, OTHER_LENGTH, LENGTH_BALANCE)


def reasons_of(block: Block, winners: Winners, rows: np.ndarray, settings: SelectionSettings) -> np.ndarray:
    """Index into REASONS for each of the block's prompts `rows`, none of which has a pair."""
    usable = ~np.isnan(block.value[rows])
    can_win = usable if block.can_win is None else block.can_win[rows]
    if block.text is None:
        one = np.count_nonzero(usable, axis=1) == 1
        another = np.ones_like(usable)
    else:
        text = block.text[rows]
        one = ((text == pick(text, usable.argmax(axis=1))[:, None]) | ~usable).all(axis=1)
        another = text != pick(text, winners.column[rows])[:, None]
    if settings.rule in RULES_WITHOUT_REJECTED:
        one = np.zeros_like(one)
    wide = winners.gap[rows] > settings.min_gap
    tests = {
        NO_SCORE: ~usable.any(axis=1),
        ONE_CANDIDATE: one,
        ALL_CUT: ~can_win.any(axis=1),
        BELOW_MIN: ~winners.found[rows],
        NO_LOSER: ~wide.any(axis=1),
        SAME_TEXT: ~(wide & another).any(axis=1),
    }
    return np.select(list(tests.values()), [REASONS.index(name) for name in tests], REASONS.index(OTHER_LENGTH))


def detail(block: Block, winners: Winners, row: int, reason: str, settings: SelectionSettings) -> str:
    """The figures behind a prompt's reason, for a person."""
    usable = ~np.isnan(block.value[row])
    scored = int(np.count_nonzero(usable))
    if reason == NO_SCORE:
        among = "" if settings.candidates is None else f" with k below {settings.candidates}"
        lacking = "a confidence" if settings.rule == "longest" else "both a score and a confidence"
        return f"no candidate{among} has {lacking}"
    if reason == ONE_CANDIDATE:
        return f"{scored} scored, all with one text" if scored > 1 else "1 scored"
    if reason == ALL_CUT:
        return f"{scored} scored, all cut at the token limit"
    if reason == BELOW_MIN:
        best = np.max(block.value[row], where=usable if block.can_win is None else block.can_win[row], initial=-np.inf)
        return f"best score {best:.6g}, min_chosen_mas {settings.min_chosen_mas:.6g}"
    if reason == NO_LOSER:
        return f"largest gap {np.nanmax(winners.gap[row]):.6g}, min_gap {settings.min_gap:.6g}"
    if reason == SAME_TEXT:
        return "every candidate above min_gap has the chosen one's text"
    length = int(block.n_tokens[row, winners.column[row]])
    return f"none has {length} tokens, as the chosen one, give or take {settings.max_length_difference}"
