"""The Multimodal Alignment Score: the weighted mean of calibrated scorers (paper, section 3.3)."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import Field, model_validator

from m3po_dagster.method.alignment.calibration import Calibration, CalibrationEntry, read_calibrations
from m3po_dagster.method.alignment.scorer import SCORED, Batch, Score, Scorer, ScorerSettings
from m3po_dagster.settings import Settings

S = TypeVar("S", bound=ScorerSettings)

FIXED = ("prompt_id", "mas", "status", "words")
"""Columns of every judge's table, beside the candidate's id."""

DIGITS = 6
"""Decimals of a score. What float32 arithmetic adds beyond them differs from run to run and is no preference: kept, it
would part candidates that are equally good."""

WORDS_LENGTH = 400
"""Characters a scorer's words are cut to: enough for the evidence, whatever a model rambles."""


class MasSettings(Settings, Generic[S]):
    """The judge of a study: its scorers. `MasSettings[A | B]` says which kinds a study may name."""

    scorers: tuple[S, ...] = Field(
        min_length=1, description="the scorers; MAS is the mean of their calibrated values by `weight`"
    )

    calibrations: Path | None = Field(
        None,
        description="file of `m3po judge calibrate`: the maps to [0, 1] of the scorers that give no `calibration`",
    )

    probe_repeats: int = Field(
        3,
        ge=1,
        le=99,
        description="how often a probe asks a served scorer each question of its fixed set; the median answer counts, "
        "so that chance does not look like a new model",
    )

    @model_validator(mode="after")
    def _usable(self) -> "MasSettings[S]":
        names = [scorer.name for scorer in self.scorers]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ValueError(f"two scorers are called '{twice[0]}': give each its own `name`")
        if not any(scorer.weight > 0 for scorer in self.scorers):
            raise ValueError("every scorer has weight 0, so there is no MAS: give at least one a positive `weight`")
        sub_scores = [name for scorer in self.scorers for name in scorer.sub_scores]
        _no_column_twice([scorer.name for scorer in self.scorers], sub_scores)
        return self

    @property
    def sub_scores(self) -> dict[str, str]:
        """The sub-score columns of every scorer, in order, each with what it holds."""
        return {name: meaning for scorer in self.scorers for name, meaning in scorer.sub_scores.items()}

    def fitted(self) -> dict[str, CalibrationEntry]:
        """The entries of the study's calibration file; empty without one.

        Raises FileNotFoundError and ValueError that name the file.
        """
        if self.calibrations is None:
            return {}
        if not self.calibrations.is_file():
            raise FileNotFoundError(
                f"{self.calibrations} does not exist (judge.calibrations of the study): `m3po judge calibrate --out` "
                "writes it"
            )
        return read_calibrations(self.calibrations)

    def calibrated(self) -> Self:
        """The same judge with every scorer's calibration written out: what is in no file any more can't change."""
        fitted = self.fitted()
        scorers = tuple(scorer.calibrated(fitted) for scorer in self.scorers)
        return self.model_copy(update={"scorers": scorers, "calibrations": None})

    def build(self, device: str = "cpu") -> "MasScorer":
        """Loads every scorer on `device`."""
        return MasScorer(
            [scorer.build(device) for scorer in self.scorers],
            {scorer.name: scorer.weight for scorer in self.scorers},
            {scorer.name: scorer.resolved_calibration() for scorer in self.calibrated().scorers},
        )


class MasScorer:
    """Scores batches with every scorer and combines them.

    `scorers` and `sub_scores` are the columns beside the fixed ones, in the order `storage.tables.mas_schema` takes
    them. Raises ValueError for clashing columns, missing calibrations, and weights that are negative or all 0.
    """

    def __init__(
        self, scorers: Sequence[Scorer], weights: Mapping[str, float], calibrations: Mapping[str, Calibration]
    ) -> None:
        self._scorers = tuple(scorers)
        self.scorers = [scorer.name for scorer in scorers]
        self.sub_scores = [name for scorer in scorers for name in scorer.sub_scores]
        _no_column_twice(self.scorers, self.sub_scores)
        if missing := [name for name in self.scorers if name not in weights or name not in calibrations]:
            raise ValueError(f"scorer '{missing[0]}' needs a weight and a calibration")
        self._weights = {name: weights[name] for name in self.scorers}
        self._calibrations = {name: calibrations[name] for name in self.scorers}
        if min(self._weights.values()) < 0 or not sum(self._weights.values()) > 0:
            raise ValueError(f"weights must not be negative and not all 0, got {self._weights}")

    def score(self, batch: Batch, progress: Callable[[int, int], None] | None = None) -> list[dict]:
        """One row an answer, in order: prompt_id, mas, status, words, each scorer (calibrated), each sub-score (raw).

        `mas` is null when any scorer with a positive weight could not judge; `status` names each scorer that could
        not and why; `words` is what the scorers say for their scores, null when none spoke. The caller adds
        candidate_id. `progress` is called with (scorers done, scorers).
        """
        scores: dict[str, list[list[Score]]] = {}
        for done, scorer in enumerate(self._scorers, start=1):
            scores[scorer.name] = scorer.score(batch)
            if progress:
                progress(done, len(self._scorers))
        return [
            self._row(prompt.prompt_id, {name: scores[name][p][a] for name in self.scorers})
            for p, (prompt, answers) in enumerate(batch)
            for a in range(len(answers))
        ]

    def _row(self, prompt_id: str, scores: Mapping[str, Score]) -> dict:
        row = dict.fromkeys([*FIXED, *self.scorers, *self.sub_scores])
        row["prompt_id"] = prompt_id
        unscored = [f"{name}: {score.reason}" for name, score in scores.items() if score.value is None]
        row["status"] = "; ".join(unscored) or SCORED
        row["words"] = self._words(scores)
        for name, score in scores.items():
            if score.value is not None:
                row[name] = round(self._calibrations[name].apply(score.value), DIGITS)
                row.update(score.sub_scores)
        entering = {name: weight for name, weight in self._weights.items() if weight > 0}
        if all(row[name] is not None for name in entering):
            mean = math.fsum(w * row[name] for name, w in entering.items()) / math.fsum(entering.values())
            row["mas"] = round(mean, DIGITS)
        return row

    def _words(self, scores: Mapping[str, Score]) -> str | None:
        said = {name: words for name, score in scores.items() if (words := one_line(score.words))}
        return "\n".join(words if len(scores) == 1 else f"{name}: {words}" for name, words in said.items()) or None


def _no_column_twice(scorers: Sequence[str], sub_scores: Sequence[str]) -> None:
    for name, n in Counter(["candidate_id", *FIXED, *scorers, *sub_scores]).items():
        if n > 1:
            raise ValueError(f"the column '{name}' would appear {n} times in the MAS table: rename a scorer")


def one_line(words: str) -> str:
    """`words` on one line, cut to WORDS_LENGTH characters; a cut ends in an ellipsis."""
    line = " ".join(words.split())
    return line if len(line) <= WORDS_LENGTH else f"{line[: WORDS_LENGTH - 1]}\u2026"
