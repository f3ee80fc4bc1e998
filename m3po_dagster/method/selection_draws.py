"""The rules that draw their pairs: vanilla, random and margin_pairs.

A draw depends on the seed and the prompt's id alone, not on other prompts, shards or the order of the rows; what
margin_pairs then leaves out so that longer and shorter chosen answers are alike in number depends on its shard.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from m3po_dagster.method.selection_matrix import BLOCK_ELEMENTS, Block
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_winners import Winners

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)


class Pairs(NamedTuple):
    """M pairs of a block's prompts, those of a prompt together and the best first; columns of the N candidates."""

    row: np.ndarray  # (M,) rising
    chosen: np.ndarray  # (M,)
    rejected: np.ndarray  # (M,) -1 for none
    score: np.ndarray  # (M,) NaN for none


def nothing(size: int) -> tuple[np.ndarray, np.ndarray]:
    """No rejected candidate and no score, so many times."""
    return np.full(size, -1), np.full(size, np.nan)


def one_each(chosen: np.ndarray, rejected: np.ndarray, score: np.ndarray) -> Pairs:
    """From one entry a prompt, (B,) each; a prompt whose `chosen` is -1 has no pair."""
    row = np.flatnonzero(chosen >= 0)
    return Pairs(row, chosen[row], rejected[row], score[row])


def vanilla(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    """Uniform over the prompt's pairs that make a preference, so a tied draw costs no prompt its pair."""
    size = len(block.value)
    chosen, rejected = np.full(size, -1), np.full(size, -1)
    draws = np.array([_draw(settings.seed, prompt_id.as_py())[0] for prompt_id in prompt_ids], dtype=np.uint64)
    for part in _preferences(block, settings):
        count = np.count_nonzero(part.allowed, axis=1)
        nth = (draws[part.rows] % np.maximum(count, 1).astype(np.uint64)).astype(np.int64)
        drawn = (part.allowed.cumsum(axis=1, dtype=np.int32) > nth[:, None]).argmax(axis=1)
        better, worse = part.oriented(np.arange(len(drawn)), drawn)
        chosen[part.rows], rejected[part.rows] = np.where(count > 0, better, -1), np.where(count > 0, worse, -1)
    return one_each(chosen, rejected, nothing(size)[1])


def random_pair(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    """Vanilla's pair, or the same the other way round."""
    pairs = vanilla(block, winners, prompt_ids, settings)
    swap = np.array([_draw(settings.seed, prompt_ids[int(row)].as_py())[1] for row in pairs.row], dtype=bool)
    chosen, rejected = np.where(swap, pairs.rejected, pairs.chosen), np.where(swap, pairs.chosen, pairs.rejected)
    return Pairs(pairs.row, chosen, rejected, pairs.score)


def margin_pairs(block: Block, winners: Winners, prompt_ids: pa.StringArray, settings: SelectionSettings) -> Pairs:
    """At most max_pairs of the prompt's preferences, by turns with a longer, a shorter, an equally long chosen answer.

    The n-th preference of a prompt has the n-th key of a random sequence; each kind gives its preferences in the order
    of their keys, and in each turn the kinds come in the order of the keys too. `balanced` leaves out the rest.
    """
    draws = np.array([_draw(settings.seed, prompt_id.as_py())[0] for prompt_id in prompt_ids], dtype=np.uint64)
    found = []
    for part in _preferences(block, settings):
        nth = part.allowed.cumsum(axis=1, dtype=np.int32).astype(np.uint64)
        key = np.where(part.allowed, _mixed(draws[part.rows][:, None] + nth * _GOLDEN), _LAST)
        tokens = block.n_tokens[part.rows]
        longer = tokens[:, part.first] - tokens[:, part.second]
        longer[~part.forward] *= -1
        for kind in (longer > 0, longer < 0, longer == 0):
            found.append(_first_of(part, kind & part.allowed, key, settings.max_pairs))
    if not found:
        empty = np.empty(0, np.int64)
        return Pairs(empty, empty, *nothing(0))
    row, turn, key, better, worse = map(np.concatenate, zip(*found, strict=True))
    order = np.lexsort((key, turn, row))
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    kept = order[place < settings.max_pairs]
    row, better, worse = row[kept], better[kept], worse[kept]
    gap = block.value[row, better] - block.value[row, worse]
    best_first = np.lexsort((worse, better, -gap, row))
    return Pairs(row[best_first], better[best_first], worse[best_first], nothing(len(row))[1])


def balanced(length_difference: np.ndarray, pair_ids: Sequence[str], seed: int) -> np.ndarray:
    """Which of M pairs stay so that as many have a longer chosen answer as a shorter one: (M,) True for those that do.

    `length_difference` is tokens of the chosen minus tokens of the rejected. Pairs of equal length stay. Of the more
    frequent kind those stay whose sha256 of seed and pair_id is lowest.
    """
    longer, shorter = np.flatnonzero(length_difference > 0), np.flatnonzero(length_difference < 0)
    more, fewer = (longer, shorter) if len(longer) > len(shorter) else (shorter, longer)
    ranked = sorted(more.tolist(), key=lambda pair: hashlib.sha256(f"{seed}:{pair_ids[pair]}".encode()).digest())
    stays = np.ones(len(length_difference), dtype=bool)
    stays[ranked[len(fewer) :]] = False
    return stays


class _Preferences(NamedTuple):
    """All pairs of columns of some prompts, as (prompts, pairs) arrays."""

    rows: slice  # of the block
    first: np.ndarray  # (pairs,) columns, first < second
    second: np.ndarray
    allowed: np.ndarray  # whether it is a preference
    forward: np.ndarray  # whether the first column is the better one

    def oriented(self, row: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The better and the worse column of a pair of each of these rows."""
        swap = ~self.forward[row, pair]
        first, second = self.first[pair], self.second[pair]
        return np.where(swap, second, first), np.where(swap, first, second)


def _preferences(block: Block, settings: SelectionSettings) -> Iterator[_Preferences]:
    """Whether, of two candidates of a prompt, one is better by more than min_gap, may win, and differs in text."""
    size, width = block.value.shape
    if width < 2:
        return
    first, second = np.triu_indices(width, k=1)
    can_win = np.ones_like(block.value, dtype=bool) if block.can_win is None else block.can_win
    if settings.min_chosen_mas is not None:
        can_win = can_win & (block.value >= settings.min_chosen_mas)
    step = max(1, BLOCK_ELEMENTS // len(first))
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        gap = block.value[rows][:, first] - block.value[rows][:, second]
        forward = (gap > settings.min_gap) & can_win[rows][:, first]
        allowed = forward | ((-gap > settings.min_gap) & can_win[rows][:, second])
        if block.text is not None:
            allowed &= block.text[rows][:, first] != block.text[rows][:, second]
        yield _Preferences(rows, first, second, allowed, forward)


def _first_of(part: _Preferences, mask: np.ndarray, key: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Row, turn, key, better and worse column of the `count` marked pairs of each row with the lowest keys."""
    masked = np.where(mask, key, _LAST)
    count = min(count, masked.shape[1])
    at = np.argpartition(masked, count - 1, axis=1)[:, :count]
    lowest = np.take_along_axis(masked, at, axis=1)
    order = np.argsort(lowest, axis=1)
    at, lowest = np.take_along_axis(at, order, axis=1), np.take_along_axis(lowest, order, axis=1)
    row, turn = np.nonzero(np.take_along_axis(mask, at, axis=1))
    pair = at[row, turn]
    return row + part.rows.start, turn, lowest[row, turn], *part.oriented(row, pair)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64: one 64-bit number to another, each once."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _draw(seed: int, prompt_id: str) -> tuple[int, bool]:
    """64 random bits and a coin that depend on the seed and the prompt alone, not on other prompts or their order."""
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big"), bool(digest[8] & 1)
