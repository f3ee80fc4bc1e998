"""Which candidates of a prompt become its pair: the M3P-Score of section 3.5 and the rules it is compared with.

`selection_winners` has what they share, ties included; `selection_draws` the rules that draw at random.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from m3po_dagster.method.selection_draws import Pairs, margin_pairs, nothing, one_each, random_pair, vanilla
from m3po_dagster.method.selection_matrix import Block
from m3po_dagster.method.selection_reasons import REASONS, detail, reasons_of
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_winners import Winners, confidence_penalty, find_winners, first_best, pick

STANDARD_DEVIATIONS = 2
"""How far below the mean of the prompt's scores sweet_spot looks for its loser (arXiv 2502.16825)."""


@dataclass(frozen=True)
class Choice:
    """The outcome for a block of B prompts: M pairs, those of a prompt together and the best first.

    `chosen` and `rejected` are columns of the block's N candidates.
    """

    row: np.ndarray  # (M,) the prompt in the block, rising
    chosen: np.ndarray  # (M,)
    rejected: np.ndarray  # (M,) -1 for none
    score: np.ndarray  # (M,) S(R_l) of equation 2; NaN for rules without it
    tied: np.ndarray  # (B,) True where several candidates share the top score
    reasons: dict[int, tuple[str, str]]  # prompt of the block without a pair -> reason, detail


def choose(block: Block, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Choice:
    """Apply the settings' rule to a block; `prompt_ids` are the ids of its B prompts (the seed of their draws)."""
    winners = find_winners(block, settings)
    pairs = _RULES[settings.rule](block, winners, prompt_ids, settings)
    without = np.setdiff1d(np.arange(len(winners.column)), pairs.row)
    reasons = {}
    for row, code in zip(without.tolist(), reasons_of(block, winners, without, settings), strict=True):
        reasons[row] = REASONS[code], detail(block, winners, row, REASONS[code], settings)
    return Choice(pairs.row, pairs.chosen, pairs.rejected, pairs.score, winners.tied, reasons)


def _m3p(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    confidence = block.confidence(settings.confidence)
    penalty = confidence_penalty(pick(confidence, winners.column)[:, None] - confidence, settings)
    score = np.where(winners.losers, winners.gap - settings.alpha * penalty, -np.inf)
    return _against_first(block, winners, score, settings)


def _flipped(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    pairs = _m3p(block, winners, prompt_ids, settings)
    return Pairs(pairs.row, pairs.rejected, pairs.chosen, pairs.score)


def _best_against_worst(
    block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings
) -> Pairs:
    """By whatever the block's values are: a reward (reward_max_min), the number of tokens (longest)."""
    return _without_score(_against_first(block, winners, np.where(winners.losers, winners.gap, -np.inf), settings))


def _sweet_spot(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    distance = np.abs(block.value - _sweet_score(block)[:, None])
    return _without_score(_against_first(block, winners, np.where(winners.losers, -distance, -np.inf), settings))


def _sweet_score(block: Block) -> np.ndarray:
    """(B,) mean - 2 sd of the scores of each prompt's usable candidates (the sd of the candidates, not of a sample).

    Summed one by one in the order of k, so that neither padding nor the processor's vector width moves a last bit.
    """
    usable = ~np.isnan(block.value)
    count = np.maximum(np.count_nonzero(usable, axis=1), 1)
    mean = _sum_in_order(np.where(usable, block.value, 0.0)) / count
    deviation = np.where(usable, block.value - mean[:, None], 0.0)
    return mean - STANDARD_DEVIATIONS * np.sqrt(_sum_in_order(deviation * deviation) / count)


def _sum_in_order(values: np.ndarray) -> np.ndarray:
    total = np.zeros(len(values))
    for column in range(values.shape[1]):
        total += values[:, column]
    return total


def _best_only(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    return _without_score(one_each(np.where(winners.found, winners.column, -1), *nothing(len(winners.column))))


def _every_answer(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    """Also a cut answer: its score tells what the judge thinks of it."""
    row, column = np.nonzero(~np.isnan(block.value))
    falling = (-block.value, -block.mean_logp, block.n_tokens)
    order = np.lexsort((column, *(key[row, column] for key in reversed(falling)), row))
    return Pairs(row[order], column[order], *nothing(len(row)))


def _against_first(block: Block, winners: Winners, score: np.ndarray, settings: SelectionSettings) -> Pairs:
    """R_w against the loser with the highest score; -inf marks what is not eligible."""
    loser, _ = first_best(score, block.confidence(settings.confidence), block.n_tokens)
    best = pick(score, loser)
    paired = best > -np.inf
    return one_each(np.where(paired, winners.column, -1), loser, best)


def _without_score(pairs: Pairs) -> Pairs:
    return Pairs(pairs.row, pairs.chosen, pairs.rejected, np.full(len(pairs.row), np.nan))


_RULES: dict[str, Callable[[Block, Winners, pa.StringArray, SelectionSettings], Pairs]] = {
    "m3p": _m3p,
    "flipped": _flipped,
    "best_only": _best_only,
    "every_answer": _every_answer,
    "reward_max_min": _best_against_worst,
    "longest": _best_against_worst,
    "sweet_spot": _sweet_spot,
    "vanilla": vanilla,
    "random": random_pair,
    "margin_pairs": margin_pairs,
}
