"""Answers that the judge could not score: counted by reason, and too many of them end the work (paper, section 3.3)."""

from collections import Counter
from collections.abc import Iterable, Mapping

from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.method.generation.failures import too_many

SHOWN_REASONS = 5


class TooManyUnscored(ValueError):
    """More answers are unscored than may; the message counts the reasons and gives what the judge said of one."""


def is_unscored(row: Mapping) -> bool:
    """Whether a row of the MAS table lacks a score that was wanted."""
    return row["mas"] is None and row["status"] != NOT_NEEDED


class Unscored:
    """The unscored answers of a shard with `answers` answers, of which a share of `max_unscored` may be unscored."""

    def __init__(self, answers: int, max_unscored: float) -> None:
        self.answers, self.max_unscored = answers, max_unscored
        self.reasons: Counter[str] = Counter()
        self._said = ""

    def add(self, rows: Iterable[Mapping]) -> None:
        """Counts those of these rows of the MAS table that are unscored."""
        for row in filter(is_unscored, rows):
            self.reasons[row["status"]] += 1
            self._said = self._said or row["words"] or ""

    def check(self) -> None:
        """Raises TooManyUnscored when no result can come out any more that may be used."""
        unscored = self.reasons.total()
        if too_many(unscored, self.answers, self.max_unscored):
            shown = [f"{count} x {reason}" for reason, count in self.reasons.most_common(SHOWN_REASONS)]
            more = ["and others"] if len(self.reasons) > SHOWN_REASONS else []
            said = f' The first of them: "{self._said}".' if self._said else ""
            raise TooManyUnscored(
                f"{unscored} of {self.answers} candidates are unscored so far, more than judge.max_unscored = "
                f"{self.max_unscored:g} allows: {'; '.join([*shown, *more])}.{said} What was scored is kept. Mend the "
                "cause and run it again, which asks the failed ones again and no others; or raise judge.max_unscored "
                "to go on without them."
            )
