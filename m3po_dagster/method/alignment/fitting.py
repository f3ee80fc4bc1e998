"""Fits a scorer's calibration on a sample of answers: once, before anything is scored (section 3.3)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m3po_dagster.method.alignment.calibration import (
    FIT_QUANTILES,
    CalibrationEntry,
    FitRecord,
    Kind,
    fit,
)
from m3po_dagster.method.alignment.rounds import TOGETHER
from m3po_dagster.method.alignment.scorer import Batch, Scorer


@dataclass(frozen=True)
class RawValues:
    """A scorer's raw values over a sample, and why answers have none."""

    values: tuple[float, ...]
    unscored: Mapping[str, int]


def raw_values(scorer: Scorer, sample: Batch, progress: Callable[[int, int], None] | None = None) -> RawValues:
    """The scorer's values on its own scale, no map applied. `progress` is told (prompts done, prompts)."""
    together = getattr(scorer, "together", TOGETHER)
    values: list[float] = []
    unscored: Counter[str] = Counter()
    for start in range(0, len(sample), together):
        for score in (score for row in scorer.score(sample[start : start + together]) for score in row):
            if score.value is None:
                unscored[score.reason] += 1
            else:
                values.append(score.value)
        if progress:
            progress(min(start + together, len(sample)), len(sample))
    return RawValues(tuple(values), dict(unscored))


def fitted_entry(
    raw: RawValues,
    kind: Kind,
    tails: float,
    *,
    model: str,
    study: str,
    shards: Mapping[str, str],
    seed: int,
    prompts: int,
) -> CalibrationEntry:
    """The map of these raw values, with the record of the fit.

    A linear map leaves the share `tails` of the sample beyond each of its ends. Raises ValueError when the sample
    holds fewer than two values, or no spread to fit.
    """
    quantiles = np.quantile(raw.values, FIT_QUANTILES) if raw.values else ()
    record = FitRecord(
        model=model,
        study=study,
        shards=dict(shards),
        seed=seed,
        prompts=prompts,
        values=len(raw.values),
        unscored=dict(raw.unscored),
        tails=tails if kind == "linear" else 0.0,
        quantiles={f"{share:g}": float(value) for share, value in zip(FIT_QUANTILES, quantiles, strict=False)},
    )
    return CalibrationEntry(map=fit(raw.values, kind, tails, 1 - tails), fit=record)


def at_the_ends(entry: CalibrationEntry, values: Sequence[float]) -> tuple[float, float]:
    """Share of the values that the map makes exactly 0, and exactly 1: answers that it can't tell apart."""
    mapped = np.array([entry.map.apply(value) for value in values])
    return float((mapped == 0).mean()), float((mapped == 1).mean())
