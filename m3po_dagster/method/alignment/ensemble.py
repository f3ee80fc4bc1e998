"""Several judges as one scorer, and a stronger one where they disagree (paper, section 4.9).

An answer's value is the mean, the median or the majority of what the judges say of it. How far they are apart is a
column of its own, and a reason to ask a referee, whose word then counts alone.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from m3po_dagster.method.alignment.calibration import Calibration, CalibrationEntry, Identity
from m3po_dagster.method.alignment.rounds import TOGETHER, Known, ask, everything
from m3po_dagster.method.alignment.scorer import Batch, Score, Scorer, ScorerSettings, calibrated
from m3po_dagster.settings import Settings

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.account import Account

S = TypeVar("S", bound=ScorerSettings)


class RefereeSettings(Settings, Generic[S]):
    """A further judge that is asked only where the others disagree; its value then takes the place of theirs."""

    judge: S = Field(description="the scorer that decides, a stronger one than the others; it has no weight")
    disagreement: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="it is asked about an answer whose highest and lowest value are further apart than this",
    )


class EnsembleSettings(ScorerSettings, Generic[S]):
    """Several judges as one scorer.

    `EnsembleSettings[A | B]` says which kinds may be among them.
    """

    kind: Literal["ensemble"] = Field("ensemble", description="several judges of which each says a value")
    name: str = Field("ensemble", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the combined value to [0, 1]; it already lies there"
    )
    judges: tuple[S, ...] = Field(
        min_length=2, description="the judges, scorers of any other kind, each with its own name and calibration"
    )
    combine: Literal["mean", "median", "majority"] = Field(
        "mean",
        description="of the judges' calibrated values: their mean by the judges' `weight`; their median; the value "
        "that most of them give, the median where no value has the most",
    )
    min_judges: int | None = Field(
        None,
        ge=1,
        description="judges that must have scored an answer, else it is unscored; null: all of them",
    )
    referee: RefereeSettings[S] | None = Field(None, description="who decides where the judges disagree; null: nobody")

    @model_validator(mode="after")
    def _usable(self) -> "EnsembleSettings[S]":
        if self.min_judges is not None and self.min_judges > len(self.judges):
            raise ValueError(f"min_judges is {self.min_judges}, and there are {len(self.judges)} judges")
        weighted = [judge.name for judge in self.judges if judge.weight != 1]
        if self.referee is not None and self.referee.judge.weight != 1:
            raise ValueError("the referee's value counts alone: remove its weight")
        if weighted and self.combine != "mean":
            raise ValueError(f"combine {self.combine} does not weigh: remove the weight of {', '.join(weighted)}")
        if self.combine == "mean" and not all(judge.weight > 0 for judge in self.judges):
            raise ValueError("a judge of weight 0 has no part in the mean: give it a positive weight, or remove it")
        own = [self.name, f"{self.name}_disagreement", f"{self.name}_referee"]
        names = own + [name for member in self.members for name in (member.name, *member.sub_scores)]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ValueError(f"the column '{twice[0]}' would appear twice: give each judge its own `name`")
        return self

    @property
    def members(self) -> tuple[S, ...]:
        """The judges and the referee."""
        return self.judges if self.referee is None else (*self.judges, self.referee.judge)

    @property
    def served(self) -> bool:
        """Whether any of its members is."""
        return any(member.served for member in self.members)

    @property
    def looks_at_image(self) -> bool:
        """Whether any of its members does."""
        return any(member.looks_at_image for member in self.members)

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_disagreement, each member's value and its own sub-scores, and NAME_referee where there is one."""
        found = {f"{self.name}_disagreement": "highest minus lowest value of the judges that scored, in [0, 1]"}
        if self.referee is not None:
            found[f"{self.name}_referee"] = "1 where the referee was asked, else 0"
        for member in self.members:
            role = "judge" if member in self.judges else "referee"
            found |= {member.name: f"{role} {member.name} of {self.name}, calibrated to [0, 1]", **member.sub_scores}
        return found

    def calibrated(self, fitted: Mapping[str, CalibrationEntry]) -> Self:
        """The same ensemble with its own and its members' calibrations written out. Raises as `calibration_entry`."""
        judges = tuple(judge.calibrated(fitted) for judge in self.judges)
        referee = self.referee
        if referee is not None:
            referee = referee.model_copy(update={"judge": referee.judge.calibrated(fitted)})
        return super().calibrated(fitted).model_copy(update={"judges": judges, "referee": referee})

    def identity(self) -> dict:
        """How the members are combined; the members' own identities come on top of it."""
        settings = self.model_dump(mode="json", exclude={"calibration", "judges", "referee"})
        referee = None
        if self.referee is not None:
            referee = {"judge": self.referee.judge.name, "disagreement": self.referee.disagreement}
        weights = {judge.name: judge.weight for judge in self.judges} if self.combine == "mean" else {}
        return {
            "settings": settings | {"referee": referee, "weights": weights},
            "calibration": self.calibration.version,
        }

    def build(self, device: str = "cpu") -> "Ensemble":
        """Loads every member on `device`. Raises as the members do."""
        return Ensemble(self, {member.name: member.build(device) for member in self.members})


class Ensemble:
    """Raw value: the judges' combined, or the referee's; in [0, 1]. Words: what each member says for its own.

    Sub-scores: those of `EnsembleSettings.sub_scores` that there are; a judge that could not score has none, nor has a
    referee that was not asked. An answer that is unscored keeps what its members said.
    """

    def __init__(self, settings: EnsembleSettings, members: Mapping[str, Scorer]) -> None:
        self.settings = settings
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self._members = dict(members)
        self._calibrations = {member.name: member.resolved_calibration() for member in settings.members}

    @property
    def members(self) -> tuple[Scorer, ...]:
        """The judges and the referee."""
        return tuple(self._members.values())

    @property
    def together(self) -> int:
        """Prompts to be given at once: as many as the member wants that wants most."""
        return max(getattr(member, "together", TOGETHER) for member in self.members)

    def at(self, account: "Account") -> "Ensemble":
        """The same ensemble, the replies of its served members kept and paid by the account."""
        return self._with(lambda member: member.at(account) if hasattr(member, "at") else member)

    def swapped(self) -> "Ensemble":
        """The same ensemble, the answers of each request to a served member in the reverse order."""
        return self._with(lambda member: member.swapped() if hasattr(member, "swapped") else member)

    def _with(self, change: Callable[[Scorer], Scorer]) -> "Ensemble":
        other = copy.copy(self)
        other._members = {name: change(member) for name, member in self._members.items()}
        return other

    def score(self, batch: Batch) -> list[list[Score]]:
        """Every judge is asked about every answer, the referee about those that they disagree on.

        Unscored: fewer than `min_judges` judges scored, or the referee that was asked could not.
        """
        known: Known = [[{} for _ in answers] for _, answers in batch]
        for judge in self.settings.judges:
            ask(self._members[judge.name], batch, everything(batch), known)
        referee = self.settings.referee
        if referee is not None:
            wanted = [[j for j, scores in enumerate(some) if self._disputed(scores)] for some in known]
            ask(self._members[referee.judge.name], batch, wanted, known)
        return [[self._combined(scores) for scores in some] for some in known]

    def _disputed(self, scores: Mapping[str, Score]) -> bool:
        values = self._values(scores)
        return len(values) >= self._enough and disagreement(values.values()) > self.settings.referee.disagreement

    @property
    def _enough(self) -> int:
        return self.settings.min_judges or len(self.settings.judges)

    def _values(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """The calibrated values of the judges that scored."""
        found = {judge.name: self._calibrated(judge.name, scores) for judge in self.settings.judges}
        return {name: value for name, value in found.items() if value is not None}

    def _calibrated(self, name: str, scores: Mapping[str, Score]) -> float | None:
        return calibrated(scores[name], self._calibrations[name]) if name in scores else None

    def _combined(self, scores: Mapping[str, Score]) -> Score:
        settings, values = self.settings, self._values(scores)
        value, reason = None, _reasons(scores, [judge.name for judge in settings.judges])
        if len(values) >= self._enough:
            value = combined(settings.combine, values, {judge.name: judge.weight for judge in settings.judges})
        if settings.referee is not None and settings.referee.judge.name in scores:
            name = settings.referee.judge.name
            value, reason = self._calibrated(name, scores), _reasons(scores, [name])
        words = " | ".join(f"{name}: {score.words}" for name, score in reversed(scores.items()) if score.words)
        told = self._sub_scores(scores, values)
        return Score(None, reason, told, words) if value is None else Score(value, sub_scores=told, words=words)

    def _sub_scores(self, scores: Mapping[str, Score], values: Mapping[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        if len(values) > 1:
            found[f"{self.name}_disagreement"] = disagreement(values.values())
        if self.settings.referee is not None:
            found[f"{self.name}_referee"] = float(self.settings.referee.judge.name in scores)
        for name, score in scores.items():
            if score.value is not None:
                found |= {name: self._calibrated(name, scores), **score.sub_scores}
        return found


def disagreement(values: Sequence[float]) -> float:
    """The highest of the values minus the lowest; 0 for one."""
    return max(values) - min(values)


def combined(
    how: Literal["mean", "median", "majority"], values: Mapping[str, float], weights: Mapping[str, float]
) -> float:
    """One value of those that the judges gave, by name. A majority that two values share is the median of all."""
    if how == "mean":
        return math.fsum(weights[name] * value for name, value in values.items()) / math.fsum(map(weights.get, values))
    most = Counter(values.values()).most_common(2)
    if how == "majority" and (len(most) == 1 or most[0][1] > most[1][1]):
        return most[0][0]
    return median(values.values())


def _reasons(scores: Mapping[str, Score], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {scores[name].reason}" for name in names if scores[name].value is None)
