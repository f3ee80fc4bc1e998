"""The frozen map from a scorer's raw value to [0, 1].

One map a scorer, fitted once on a sample and then fixed: a per-prompt scale would make every prompt's best gap 1 and
hide prompts whose candidates are all equally good. Every map is monotone, so it never changes the order within one
scorer; it decides how much each scorer weighs beside the others.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from m3po_dagster.settings import Settings

CALIBRATION_FILE = "calibration.json"
# Enough knots for an empirical distribution; more would only be longer files.
QUANTILE_KNOTS = 101


class _Calibration(Settings):
    @property
    def version(self) -> str:
        """Hash of the map: equal exactly when every value is mapped alike."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Identity(_Calibration):
    """For a scorer whose raw value is already a probability or a share."""

    kind: Literal["identity"] = Field("identity", description="the raw value is used as it is")

    def apply(self, value: float) -> float:
        """`value` itself. Raises ValueError outside [0, 1]: such a scorer needs another calibration."""
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"raw value {value} is outside [0, 1]: give this scorer another calibration")
        return value


class Linear(_Calibration):
    """A straight line from `low` to `high`, flat outside."""

    kind: Literal["linear"] = Field("linear", description="low becomes 0, high becomes 1, values outside are clamped")
    low: float = Field(description="raw value that becomes 0", allow_inf_nan=False)
    high: float = Field(description="raw value that becomes 1; above low", allow_inf_nan=False)

    @model_validator(mode="after")
    def _low_below_high(self) -> "Linear":
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self

    def apply(self, value: float) -> float:
        """(value - low) / (high - low), clamped to [0, 1]."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


class ZScore(_Calibration):
    """The share of a normal distribution below the value: soft at both ends where `linear` is flat."""

    kind: Literal["zscore"] = Field("zscore", description="share of a normal distribution that lies below the value")
    mean: float = Field(description="mean of the raw values of the sample", allow_inf_nan=False)
    sd: float = Field(gt=0, description="standard deviation of the raw values of the sample", allow_inf_nan=False)

    def apply(self, value: float) -> float:
        """Phi((value - mean) / sd)."""
        return 0.5 * math.erfc((self.mean - value) / (self.sd * math.sqrt(2.0)))


class Quantile(_Calibration):
    """The share of a sample below the value: evens out a scorer whose values crowd together."""

    kind: Literal["quantile"] = Field("quantile", description="share of the sample's values that lie below the value")
    knots: tuple[float, ...] = Field(
        min_length=2, description="evenly spaced quantiles of the sample's raw values, from its minimum to its maximum"
    )

    @model_validator(mode="after")
    def _ascending(self) -> "Quantile":
        knots = np.asarray(self.knots)
        if not np.isfinite(knots).all() or (np.diff(knots) < 0).any() or knots[0] == knots[-1]:
            raise ValueError("knots must be finite, ascending and not all equal")
        return self

    def apply(self, value: float) -> float:
        """Linear between knots; a value that several knots share gets the middle of their ranks."""
        knots = np.asarray(self.knots)
        ranks = np.linspace(0.0, 1.0, len(knots))
        distinct, first, count = np.unique(knots, return_index=True, return_counts=True)
        middle = (ranks[first] + ranks[first + count - 1]) / 2
        middle[0], middle[-1] = 0.0, 1.0
        return float(np.interp(value, distinct, middle))


Kind = Literal["linear", "zscore", "quantile"]
"""The maps that are fitted on a sample."""

Calibration = Annotated[Identity | Linear | ZScore | Quantile, Field(discriminator="kind")]
_CALIBRATION = TypeAdapter(Calibration)
FIT_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class FitRecord(Settings):
    """On what a map was fitted. It explains the map and is no part of its version: equal maps are equal."""

    model: str = Field(description="hash of what decides the scorer's raw values: its model's files and its settings")
    study: str = Field(description="the study whose answers were the sample")
    shards: dict[str, str] = Field(description="shards the sample came from, each with its candidates' data version")
    seed: int = Field(description="seed of the sample")
    prompts: int = Field(description="prompts of the sample")
    values: int = Field(description="answers of the sample that the scorer gave a raw value")
    unscored: dict[str, int] = Field(description="answers without one, by reason")
    tails: float = Field(description="share of the sample beyond each end of a linear map; 0 for the other kinds")
    quantiles: dict[str, float] = Field(description="quantiles of the sample's raw values")


class CalibrationEntry(Settings):
    """A scorer's entry of a calibration file: its map, and on what it was fitted where `m3po judge calibrate` did."""

    map: Calibration = Field(description="the map of the raw value to [0, 1]")
    fit: FitRecord | None = Field(None, description="on what it was fitted; null for a map written by hand")


def fit(
    values: Sequence[float],
    kind: Kind = "linear",
    low_quantile: float = 0.05,
    high_quantile: float = 0.95,
) -> Linear | ZScore | Quantile:
    """A calibration fitted on a sample of raw values.

    `linear` runs from the `low_quantile` to the `high_quantile` of the sample, so that a few outliers don't squeeze
    the rest together. Raises ValueError when the sample holds a non-finite value or no spread to fit.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(f"a calibration needs at least 2 finite raw values, got {sample.size} values")
    if np.ptp(sample) == 0:
        raise ValueError("every raw value of the sample is equal: nothing to calibrate")
    if kind == "zscore":
        return ZScore(mean=float(sample.mean()), sd=float(sample.std()))
    if kind == "quantile":
        return Quantile(knots=tuple(np.quantile(sample, np.linspace(0, 1, QUANTILE_KNOTS)).tolist()))
    low, high = np.quantile(sample, [low_quantile, high_quantile]).tolist()
    if not low < high:
        raise ValueError(
            f"the sample's {low_quantile} and {high_quantile} quantiles are both {low}: nothing to calibrate"
        )
    return Linear(low=low, high=high)


def read_calibrations(path: Path) -> dict[str, CalibrationEntry]:
    """Scorer name -> entry: a map alone, or `map` and `fit` as `m3po judge calibrate` writes them.

    Raises FileNotFoundError, and ValueError that names the file, the scorer and the field.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a calibration file is an object, scorer name to map; this is {content!r:.60}")
    return {name: _entry(path, name, entry) for name, entry in content.items()}


def _entry(path: Path, name: str, entry: object) -> CalibrationEntry:
    try:
        if isinstance(entry, dict) and "map" in entry:
            return CalibrationEntry.model_validate(entry)
        return CalibrationEntry(map=_CALIBRATION.validate_python(entry))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}") from None


def write_calibrations(path: Path, calibrations: Mapping[str, Calibration | CalibrationEntry]) -> None:
    """Writes what `read_calibrations` reads, whole or not at all; floats survive exactly. Raises OSError."""
    content = {}
    for name, given in sorted(calibrations.items()):
        plain = given.map if isinstance(given, CalibrationEntry) and given.fit is None else given
        content[name] = plain.model_dump(mode="json")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
