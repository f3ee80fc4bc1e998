"""Another alpha or delta over the whole study in milliseconds: pair by pair what `select_pairs` would choose.

before, after = picks(fronts, saved), picks(fronts, moved)
figures(fronts, after, moved), changed(before, after)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3po_dagster.inspector.fronts import Fronts
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_winners import confidence_penalty


def pick(fronts: Fronts, settings: SelectionSettings) -> np.ndarray:
    """The entry of R_l (equation 3) for each of the Q prompts. Only alpha, delta and allow_bonus are read here.

    An earlier place is the more confident one, so that the first of equal scores is the one that `select_pairs` takes.
    """
    score = fronts.gap - settings.alpha * confidence_penalty(fronts.logp_gap, settings)
    size = len(fronts.prompt)
    best, entry = score[:size].copy(), np.arange(size)
    for begin, end in zip(fronts.begins[1:-1], fronts.begins[2:], strict=True):
        here, leading = score[begin:end], best[: end - begin]
        better = here > leading
        leading[better] = here[better]
        entry[: end - begin][better] = np.flatnonzero(better) + begin
    return entry


@dataclass(frozen=True)
class Figures:
    """What a selection looks like as a whole; None where there are no pairs. Names as in the selection sweep."""

    pairs: int
    changed: int
    overlap: float | None
    active_penalty_share: float | None
    hard_negative_share: float | None
    longer_rejected_share: float | None
    mean_mas_gap: float | None
    mean_logp_gap: float | None
    mean_length_difference: float | None


def figures(
    fronts: Sequence[Fronts], before: Sequence[np.ndarray], after: Sequence[np.ndarray], settings: SelectionSettings
) -> Figures:
    """The figures of the picks `after`, made with `settings`, over all shards; changes are counted against `before`."""
    pairs = sum(len(entry) for entry in after)
    changed = sum(int(np.count_nonzero(a != b)) for a, b in zip(after, before, strict=True))
    sums = np.zeros(6)
    for front, entry in zip(fronts, after, strict=True):
        logp_gap, length_difference = front.logp_gap[entry], front.length_difference[entry]
        penalised = np.count_nonzero(logp_gap - settings.delta > 0) if settings.alpha else 0
        sums += (
            penalised,
            np.count_nonzero(logp_gap < 0),
            np.count_nonzero(length_difference < 0),
            front.gap[entry].sum(),
            logp_gap.sum(),
            length_difference.sum(),
        )
    if not pairs:
        return Figures(0, 0, *[None] * 7)
    return Figures(pairs, changed, (pairs - changed) / pairs, *(float(value) / pairs for value in sums))


def picks(fronts: Sequence[Fronts], settings: SelectionSettings) -> list[np.ndarray]:
    """`pick` of every shard."""
    return [pick(front, settings) for front in fronts]
