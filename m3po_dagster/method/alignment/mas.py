"""The Multimodal Alignment Score: the weighted mean of calibrated scorers (paper, section 3.3)."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from m3po_dagster.method.alignment.calibration import Calibration, CalibrationEntry, read_calibrations
from m3po_dagster.method.alignment.cascade import NOT_NEEDED, AnswerFacts, Bounds, CascadeSettings, Prospects
from m3po_dagster.method.alignment.rounds import TOGETHER, Known, ask, ask_in_rounds, everything
from m3po_dagster.method.alignment.scorer import (
    DIGITS,
    SCORED,
    Batch,
    Score,
    Scorer,
    ScorerSettings,
    ServedScorer,
    calibrated,
    group_size,
)
from m3po_dagster.settings import Settings

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.account import Account

S = TypeVar("S", bound=ScorerSettings)

FIXED = ("prompt_id", "mas", "status", "words")
"""Columns of every judge's table, beside the candidate's id."""

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

    probe_tolerance: float = Field(
        0.1,
        ge=0,
        le=4,
        allow_inf_nan=False,
        description="what a served scorer's grades of the probe may move by, on average over the set, and still be the "
        "same model's; 0: any other grade is another model",
    )

    cascade: CascadeSettings | None = Field(
        None,
        description="ask the served scorers only about answers that can still become R_w or R_l; null: about all",
    )

    @model_validator(mode="after")
    def _usable(self) -> "MasSettings[S]":
        names = [scorer.name for scorer in self.scorers]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ValueError(f"two scorers are called '{twice[0]}': give each its own `name`")
        if not any(scorer.weight > 0 for scorer in self.scorers):
            raise ValueError("every scorer has weight 0, so there is no MAS: give at least one a positive `weight`")
        _no_model_twice(self.assessors)
        if self.cascade is not None:
            size = self.cascade.round_size
            uneven = [one for one in self.assessors if one.served and size % group_size(one)]
            if uneven:
                raise ValueError(
                    f"cascade: round_size {size} is no multiple of group_size {uneven[0].group_size} of "
                    f"'{uneven[0].name}': its requests would be smaller than they may be, and together more than for "
                    "all answers; make the two equal"
                )
        if self.cascade is not None and not any(scorer.served and scorer.weight > 0 for scorer in self.scorers):
            raise ValueError("cascade: no served scorer is part of MAS, so there is nothing to save: remove it")
        sub_scores = [name for scorer in self.scorers for name in scorer.sub_scores]
        _no_column_twice([scorer.name for scorer in self.scorers], sub_scores)
        return self

    @property
    def sub_scores(self) -> dict[str, str]:
        """The sub-score columns of every scorer, in order, each with what it holds."""
        return {name: meaning for scorer in self.scorers for name, meaning in scorer.sub_scores.items()}

    @property
    def assessors(self) -> tuple[ScorerSettings, ...]:
        """Every scorer that judges itself: in place of an ensemble its members."""
        return tuple(one for scorer in self.scorers for one in (scorer.members or (scorer,)))

    @property
    def may_ask_fewer(self) -> bool:
        """Whether served scorers may be asked about a part of the answers alone: under a cascade, and as a referee."""
        return self.cascade is not None or any(scorer.members for scorer in self.scorers)

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
        scorers = self.calibrated().scorers
        return MasScorer(
            [scorer.build(device) for scorer in scorers],
            {scorer.name: scorer.weight for scorer in scorers},
            {scorer.name: scorer.resolved_calibration() for scorer in scorers},
            self.cascade,
            [scorer.name for scorer in scorers if scorer.served],
        )


class MasScorer:
    """Scores batches with every scorer and combines them.

    `scorers` and `sub_scores` are the columns beside the fixed ones, in the order `storage.tables.mas_schema` takes
    them. With a `cascade` the scorers named in `dear` are asked only about answers that can still become R_w or R_l.
    Raises ValueError for clashing columns, missing calibrations, and weights that are negative or all 0.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        weights: Mapping[str, float],
        calibrations: Mapping[str, Calibration],
        cascade: CascadeSettings | None = None,
        dear: Collection[str] = (),
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
        self._entering = {name: weight for name, weight in self._weights.items() if weight > 0}
        self._cascade, self._dear = cascade, frozenset(dear)

    @property
    def served(self) -> tuple[ServedScorer, ...]:
        """Its scorers that ask a served model; in place of an ensemble those of its members."""
        judging = [one for scorer in self._scorers for one in getattr(scorer, "members", (scorer,))]
        return tuple(one for one in judging if hasattr(one, "at"))

    @property
    def together(self) -> int:
        """Prompts to be given at once: as many as the scorer wants that wants most."""
        return max(getattr(scorer, "together", TOGETHER) for scorer in self._scorers)

    def at(self, account: "Account") -> "MasScorer":
        """The same judge, the replies of its served scorers kept and paid by the account."""
        return self._with([scorer.at(account) if hasattr(scorer, "at") else scorer for scorer in self._scorers])

    def swapped(self) -> "MasScorer":
        """The same judge, the answers of each request to a served scorer in the reverse order."""
        return self._with([scorer.swapped() if hasattr(scorer, "swapped") else scorer for scorer in self._scorers])

    def exhaustive(self) -> "MasScorer":
        """The same judge without its cascade: every scorer is asked about every answer it is given."""
        return MasScorer(self._scorers, self._weights, self._calibrations)

    def _with(self, scorers: Sequence[Scorer]) -> "MasScorer":
        return MasScorer(scorers, self._weights, self._calibrations, self._cascade, self._dear)

    def score(
        self,
        batch: Batch,
        progress: Callable[[int, int], None] | None = None,
        facts: Sequence[AnswerFacts] | None = None,
    ) -> list[dict]:
        """One row an answer, in order: prompt_id, mas, status, words, each scorer (calibrated), each sub-score (raw).

        `mas` is null when any scorer with a positive weight could not judge; `status` names each scorer that could
        not and why, or is NOT_NEEDED; `words` is what the scorers say for their scores, null when none spoke. The
        caller adds candidate_id. `progress` is called with (scorers done, scorers). `facts`, one a prompt, are what a
        cascade goes by; without one they are not looked at. Raises ValueError where a cascade gets none.
        """
        known: Known = [[{} for _ in answers] for _, answers in batch]
        cheap = [one for one in self._scorers if self._cascade is None or one.name not in self._dear]
        for done, scorer in enumerate(cheap, start=1):
            ask(scorer, batch, everything(batch), known)
            if progress:
                progress(done, len(self._scorers))
        if self._cascade is not None:
            self._ask_the_dear(self._cascade, batch, facts, known)
            if progress:
                progress(len(self._scorers), len(self._scorers))
        return [
            self._row(prompt.prompt_id, scores)
            for (prompt, _), some in zip(batch, known, strict=True)
            for scores in some
        ]

    def _ask_the_dear(
        self, cascade: CascadeSettings, batch: Batch, facts: Sequence[AnswerFacts] | None, known: Known
    ) -> None:
        if facts is None or [fact.text for fact in facts] != [tuple(answers) for _, answers in batch]:
            raise ValueError("a judge with a cascade needs the facts of the answers it is given, in their order")
        dear = [one for one in self._scorers if one.name in self._dear]
        entering = [one for one in dear if one.name in self._entering]
        prospects = [Prospects(fact, cascade) for fact in facts]
        ask_in_rounds(entering, batch, known, prospects, self._bounds, cascade)
        # What is no part of MAS decides nothing: it is asked about the answers that have one.
        have_mas = [np.flatnonzero(self._bounds(some).known).tolist() for some in known]
        for scorer in dear:
            if scorer.name not in self._entering:
                ask(scorer, batch, have_mas, known)

    def _bounds(self, known: Sequence[Mapping[str, Score]]) -> Bounds:
        """Bounds of each answer's MAS: a calibrated value that is not known lies in [0, 1], and MAS rises with it."""
        low, high = (np.array([self._mas(scores, unknown) for scores in known], dtype=np.float64) for unknown in (0, 1))
        complete = np.array([scores.keys() >= self._entering.keys() for scores in known], dtype=bool)
        return Bounds(low, high, complete & ~np.isnan(low))

    def _mas(self, scores: Mapping[str, Score], unknown: float | None = None) -> float | None:
        """MAS, with `unknown` for the values of scorers that were not asked; None where a scorer could not judge."""
        values = {name: self._value(name, scores[name]) if name in scores else unknown for name in self._entering}
        if any(value is None for value in values.values()):
            return None
        mean = math.fsum(w * values[name] for name, w in self._entering.items()) / math.fsum(self._entering.values())
        return round(mean, DIGITS)

    def _value(self, name: str, score: Score) -> float | None:
        return calibrated(score, self._calibrations[name])

    def _row(self, prompt_id: str, known: Mapping[str, Score]) -> dict:
        # In the scorers' order, whichever was asked first.
        scores = {name: known[name] for name in self.scorers if name in known}
        row = dict.fromkeys([*FIXED, *self.scorers, *self.sub_scores])
        row["prompt_id"], row["mas"], row["words"] = prompt_id, self._mas(scores), self._words(scores)
        unscored = {name: score.reason for name, score in scores.items() if score.value is None}
        row["status"] = "; ".join(f"{name}: {reason}" for name, reason in unscored.items()) or SCORED
        if row["mas"] is None and not unscored.keys() & self._entering.keys():
            row["status"] = NOT_NEEDED
        for name, score in scores.items():
            row[name] = self._value(name, score)
            row.update(score.sub_scores)
        return row

    def _words(self, scores: Mapping[str, Score]) -> str | None:
        said = {name: words for name, score in scores.items() if (words := one_line(score.words))}
        return (
            "\n".join(words if len(self.scorers) == 1 else f"{name}: {words}" for name, words in said.items()) or None
        )


def _no_model_twice(scorers: Sequence[ScorerSettings]) -> None:
    """Raises ValueError where two served models could be taken for one: the ledger would answer one for the other."""
    known: dict[tuple[str, str], ScorerSettings] = {}
    for scorer in scorers:
        if scorer.served_model is not None:
            other = known.setdefault(scorer.served_model, scorer)
            if other.endpoint != scorer.endpoint:
                raise ValueError(
                    f"'{other.name}' and '{scorer.name}' ask for a model {scorer.model!r} at two addresses, and the "
                    "ledger knows a model by its name: give each its `revision` where they are two models, or one "
                    "address where they are one"
                )


def _no_column_twice(scorers: Sequence[str], sub_scores: Sequence[str]) -> None:
    for name, n in Counter(["candidate_id", *FIXED, *scorers, *sub_scores]).items():
        if n > 1:
            raise ValueError(f"the column '{name}' would appear {n} times in the MAS table: rename a scorer")


def one_line(words: str) -> str:
    """`words` on one line, cut to WORDS_LENGTH characters; a cut ends in an ellipsis."""
    line = " ".join(words.split())
    return line if len(line) <= WORDS_LENGTH else f"{line[: WORDS_LENGTH - 1]}\u2026"
