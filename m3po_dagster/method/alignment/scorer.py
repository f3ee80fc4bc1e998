"""What a scorer of alignment is: raw values for (image, question, answer) triples, or a reason why there is none.

A scorer wraps one assessment model of section 3.3. It returns raw values on its own scale; `calibration` maps them to
[0, 1] and `mas` combines several scorers into the Multimodal Alignment Score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from pydantic import Field

from m3po_dagster.method.alignment.calibration import (
    CALIBRATION_FILE,
    Calibration,
    CalibrationEntry,
    read_calibrations,
)
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.settings import Settings

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.account import Account
    from m3po_dagster.method.alignment.estimate import Estimate

# Prompts with the answers to score, as every scorer takes them.
Batch = Sequence[tuple[Prompt, Sequence[str]]]

SCORED, UNREADABLE_IMAGE = "scored", "image can't be read"

DIGITS = 6
"""Decimals of a score. What float32 arithmetic adds beyond them differs from run to run and is no preference: kept, it
would part candidates that are equally good."""

LOCAL_DIR = "local-dir:"


@dataclass(frozen=True)
class Score:
    """One answer's raw value on the scorer's own scale, with the sub-scores behind it (same scale or counts).

    `value` is None exactly when the scorer could not judge; `reason` then says why. Sub-scores that there are none of
    are left out. An unscored answer is never a
    number: not 0, not -1, not a mean. `words` are what the scorer says for its score: evidence for a person, of any
    length; empty for a scorer that gives none.
    """

    value: float | None
    reason: str = SCORED
    sub_scores: Mapping[str, float] = field(default_factory=dict)
    words: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.reason == SCORED):
            raise ValueError(f"a score has a value and reason '{SCORED}', or no value and another reason: {self}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score must be a finite number, got {self.value}")

    @classmethod
    def unscored(cls, reason: str, words: str = "") -> "Score":
        """The score of an answer that could not be judged; `reason` is one of few, `words` may be the answer's own."""
        return cls(None, reason, words=words)


def calibrated(score: Score, calibration: Calibration) -> float | None:
    """The score on the scale of [0, 1]; None for an unscored answer."""
    return None if score.value is None else round(calibration.apply(score.value), DIGITS)


class Scorer(Protocol):
    """Judges answers to prompts, many at once."""

    name: str
    sub_scores: tuple[str, ...]

    def score(self, batch: Batch) -> list[list[Score]]:
        """One list a prompt, one Score an answer, in the order given.

        A scored answer carries every name of `sub_scores`. The value of an answer does not depend on what else is in
        the batch (up to floating-point rounding).
        """
        ...


class ServedScorer(Scorer, Protocol):
    """A scorer that asks a served model; `graded` names those of its sub-scores that the model gives."""

    graded: tuple[str, ...]

    def at(self, account: "Account") -> "ServedScorer":
        """The same scorer, its replies kept in the account's ledger and paid from its budget."""
        ...

    def estimate(self, batch: Batch) -> "Estimate":
        """What scoring the batch will ask and cost, with what the account's ledger knows left out."""
        ...

    def swapped(self) -> "ServedScorer":
        """The same scorer, the answers of each request in the reverse order: the control of its position bias."""
        ...

    def value(self, sub_scores: Mapping[str, float]) -> float:
        """The raw value that these sub-scores make."""
        ...


class ScorerSettings(Settings):
    """What every scorer of a study says: its column, its share of MAS and its calibration."""

    name: str = Field(
        description="column of the MAS table that holds this scorer's calibrated value",
        pattern=r"^[a-z][a-z0-9_]*$",
    )
    weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="share in MAS, relative to the other scorers; 0 stores the column and keeps it out of MAS",
    )
    calibration: Calibration | None = Field(
        None,
        description="map of the raw value to [0, 1]; default: this name's entry in judge.calibrations, then in the "
        f"folder's {CALIBRATION_FILE}",
    )

    @property
    def endpoint(self) -> str | None:
        """The address a served model answers at; None for a model that is loaded here."""
        return None

    @property
    def served(self) -> bool:
        """Whether the model answers at an endpoint, so that only asking it shows that it changed."""
        return self.endpoint is not None

    @property
    def served_model(self) -> tuple[str, str] | None:
        """Name and revision by which the ledger knows a served model; None for a scorer without one."""
        return None

    @property
    def members(self) -> tuple["ScorerSettings", ...]:
        """The scorers it asks in its turn; none for one that judges itself."""
        return ()

    @property
    def looks_at_image(self) -> bool:
        """Whether another image can change the value; False for what compares texts alone."""
        return True

    @property
    def local_model(self) -> str | None:
        """Folder or name of the model that is loaded here; None for a scorer that loads none."""
        return None

    @property
    def weights_file(self) -> Path | None:
        """A file of weights that the study names beside the model; None without one."""
        return None

    @property
    def folder(self) -> Path | None:
        """The folder of the model that is loaded here; None without one, and for a model given by a name."""
        return None

    @property
    def sub_scores(self) -> dict[str, str]:
        """Columns beside the scorer's own, each with what it holds; known before any model is loaded."""
        return {}

    def identity(self) -> dict:
        """What decides the scores, as JSON values; a local model's files come on top of it."""
        settings = self.model_dump(mode="json", exclude={"model", "calibration"})
        return {"settings": settings, "calibration": self.resolved_calibration().version}

    def resolved_calibration(self) -> Calibration:
        """The calibration given here, else the one beside the model.

        Raises ValueError when there is neither: an uncalibrated scale would drown the other scorers.
        """
        return self.calibration_entry({}).map

    def calibrated(self, fitted: Mapping[str, CalibrationEntry]) -> Self:
        """The same scorer with its calibration written out. Raises as `calibration_entry`."""
        return self.model_copy(update={"calibration": self.calibration_entry(fitted).map})

    def calibration_entry(self, fitted: Mapping[str, CalibrationEntry]) -> CalibrationEntry:
        """The calibration that counts, and on what it was fitted: given here > `fitted` > default > model's folder.

        `fitted` is the study's calibration file, by scorer name. Raises ValueError when there is none.
        """
        if self.own_calibration is None:
            if self.name in fitted:
                return fitted[self.name]
            if self.calibration is None:
                return self._beside_the_model()
        return CalibrationEntry(map=self.calibration)

    @property
    def own_calibration(self) -> Calibration | None:
        """The calibration that the study gives; None where the scorer's kind, or a file, brings one."""
        return self.calibration if "calibration" in self.model_fields_set else None

    def _beside_the_model(self) -> CalibrationEntry:
        path = self.folder / CALIBRATION_FILE if self.folder else None
        if path is None or not path.is_file():
            raise ValueError(
                f"scorer '{self.name}' has no calibration: fit one with `m3po judge calibrate` and name its file as "
                f"judge.calibrations, set `calibration` (for example kind: linear, low, high), or put a "
                f"{CALIBRATION_FILE} in the model's folder"
            )
        known = read_calibrations(path)
        if self.name not in known:
            raise ValueError(
                f"{path} has no entry '{self.name}' (it has {', '.join(known)}): fit one with `m3po judge calibrate`, "
                "or set `calibration`"
            )
        return known[self.name]


def group_size(scorer: ScorerSettings) -> int:
    """Answers of a prompt that one request of a scorer holds; 1 for a scorer that judges each by itself."""
    return getattr(scorer, "group_size", 1)


class ModelScorerSettings(ScorerSettings):
    """A scorer whose model is loaded here."""

    model: str = Field(
        description="folder of an open_clip model (open_clip_config.json, weights, tokenizer), or a name it knows",
        min_length=1,
    )

    @property
    def local_model(self) -> str:
        """The model's folder or name."""
        return self.model.removeprefix(LOCAL_DIR)

    @property
    def folder(self) -> Path | None:
        """The model's folder; None when the model is a name that its library resolves."""
        path = Path(self.local_model)
        if not path.is_dir() and self.model.startswith(LOCAL_DIR):
            raise FileNotFoundError(f"scorer '{self.name}': the model folder {path} does not exist; correct `model`")
        return path if path.is_dir() else None
