"""Judged preference: how good the answers to open instructions are, and whether they are preferred to the base model's.

The paper's human preference (section 4.5), with a judge in the place of people: each answer is graded 1 to 5, and
compared with the base model's answer in both orders. It wins only where both orders say so; where they disagree it is a
tie. Judges prefer a place as well as an answer, so how often the orders agree is part of the result.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Headline, results_table
from m3po_dagster.evaluation.intervals import Estimate, Sums, ratio
from m3po_dagster.evaluation.judged import JUDGEMENTS, JudgedBenchmark, silent
from m3po_dagster.evaluation.preference_judging import GRADE, SAME, SHOWN_FIRST, SHOWN_SECOND, ask_served, score_here
from m3po_dagster.evaluation.preference_request import preference_request_version
from m3po_dagster.evaluation.preference_settings import PreferenceSettings
from m3po_dagster.evaluation.question import (
    BenchmarkError,
    Question,
    benchmark_image,
    check_answers,
    id_field,
    read_json_lines,
    text_field,
    unique_questions,
)
from m3po_dagster.method.judging import (
    HOW_REQUESTS_TRAVEL,
    SCORED,
    Account,
    Scorer,
    ScorerSettings,
    ServedJudgeSettings,
)

_GROUP = "all"
_COMPARED = ("compared", "wins", "losses", "same", "in_both_orders", "consistent", "verdict_ties", "verdict_firsts")
_SHOWN_REASONS = 5


class Preference(JudgedBenchmark):
    """Open instructions, and a judge that is not the one that picked the pairs."""

    kind: ClassVar[str] = "preference"
    headlines: ClassVar[tuple[Headline, ...]] = (
        Headline("score", "Judge's grade ↑", digits=2),
        Headline("win_rate", "Win rate ↑"),
    )
    against_base: ClassVar[Mapping[str, float]] = {"win_rate": 50.0}

    def __init__(self, settings: PreferenceSettings):
        self.settings = settings

    def load(self) -> list[Question]:
        """The questions; `expected` is the reference answer, if there is one. Raises BenchmarkError naming the line."""
        path = self.settings.questions
        return unique_questions(
            path, ((where, self._question(where, record)) for where, record in read_json_lines(path))
        )

    def _question(self, where: str, record: dict) -> Question:
        uri = text_field(record, "image", where)
        image = benchmark_image(self.settings.image_root, uri, where)
        reference = text_field(record, "reference", where) if record.get("reference") is not None else None
        return Question(id_field(record, where), image, uri, text_field(record, "text", where), reference)

    @property
    def served_judge(self) -> ServedJudgeSettings | None:
        """The judge that is asked over a network; None for one that is loaded here."""
        return self.settings.judge if isinstance(self.settings.judge, ServedJudgeSettings) else None

    def judge_identity(self) -> dict:
        """Endpoint, model and requests of a served judge; settings, map and margin of one that is loaded here.

        What lies in its model's folder comes on top.
        """
        if self.served_judge is None:
            return {**self.settings.judge.identity(), "margin": self.settings.margin}
        settings = self.served_judge.model_dump(mode="json", exclude=set(HOW_REQUESTS_TRAVEL))
        return {"settings": settings, "request": preference_request_version()}

    def judge_answers(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, str],
        account: Account | None,
        against: Mapping[str, str] | None = None,
        advance: Callable[[int, int], None] = silent,
    ) -> pa.Table:
        """A grade for each answer, and with `against`, the base model's answers, two comparisons or that both are one.

        Raises as `JudgedBenchmark.judge_answers`; ValueError for a served judge without an account, and as the scorer
        does that can't be loaded.
        """
        check_answers(questions, answers)
        if against is not None:
            check_answers(questions, against)
        about = (questions, answers, against, advance)
        if self.served_judge is None:
            calibration = self.settings.judge.resolved_calibration()
            rows = score_here(self._scorer, calibration, self.settings.margin, *about)
        elif account is None:
            raise ValueError(f"judge '{self.served_judge.name}' is served: it is asked through an account")
        else:
            rows = ask_served(self.served_judge, account, *about)
        return pa.Table.from_pylist(rows, JUDGEMENTS)

    @property
    def _scorer(self) -> Scorer:
        return _loaded(type(self.settings.judge), self.settings.judge.model_dump_json())

    def per_question(
        self, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """Counts `graded` and `grade` (their sum), and where answers were compared with others:

        compared, wins, losses and same (nobody was asked); in_both_orders, of which consistent; and of the two verdicts
        of each verdict_ties, and verdict_firsts for whatever was shown first. What has no score counts nowhere.

        Raises BenchmarkError where the judge scored nothing at all, with its reasons.
        """
        self.check_rule(rule)
        check_answers(questions, answers)
        judged = self.judgements_of(questions)
        rows = [judged[question.question_id] for question in questions]
        grades = [self._grade(question, row) for question, row in zip(questions, rows, strict=True)]
        counts = {
            "graded": [grade is not None for grade in grades],
            "grade": [grade or 0.0 for grade in grades],
        }
        compares = [SAME in row or SHOWN_FIRST in row for row in rows]
        if any(compares):
            if not all(compares):
                missing = questions[compares.index(False)].question_id
                raise BenchmarkError(f"{compares.count(False)} answers were not compared, the first: {missing}")
            found = [_comparison(row) for row in rows]
            counts |= {name: [one[name] for one in found] for name in _COMPARED}
        for name in ("graded", "compared"):
            if name in counts and not any(counts[name]):
                raise BenchmarkError(f"the judge scored nothing ({name}: 0 of {len(rows)}): {_reasons(rows)}")
        return results_table(questions, [_GROUP] * len(questions), [""] * len(questions), counts)

    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """score, the mean grade (1 to 5) of the answers that have one, and coverage, their share.

        Of the answers that were compared: win_rate (1 a win, 0.5 a tie, 0 a loss), wins, ties, losses, and same (the
        answer is the other's, a tie nobody was asked about); comparison_coverage is their share. Of those the judge was
        asked about: consistency, both orders agree; of its single verdicts tie_rate, and first_position_rate, how often
        the answer shown first won where one won (50 is fair). All in per cent but score. A judge that was asked nothing
        is consistent and fair; n is then 0.
        """
        n, graded = sums[_GROUP, "questions"], sums[_GROUP, "graded"]
        found = {
            "score": Estimate(ratio(sums[_GROUP, "grade"], graded), graded),
            "coverage": Estimate(100 * ratio(graded, n), n),
        }
        if (_GROUP, "compared") not in sums.values:
            return found
        compared, wins, losses, same, asked, consistent, tied, firsts = (sums[_GROUP, name] for name in _COMPARED)
        ties, verdicts = compared - wins - losses, 2 * asked
        decided = verdicts - tied
        for name, part, whole, empty in (
            ("win_rate", wins + ties / 2, compared, np.nan),
            ("wins", wins, compared, np.nan),
            ("ties", ties, compared, np.nan),
            ("losses", losses, compared, np.nan),
            ("same", same, compared, np.nan),
            ("comparison_coverage", compared, n, np.nan),
            ("consistency", consistent, asked, 1.0),
            ("tie_rate", tied, verdicts, 0.0),
            ("first_position_rate", firsts, decided, 0.5),
        ):
            found[name] = Estimate(100 * ratio(part, whole, empty), whole)
        return found

    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """The judge's grade and, where it was compared, the outcome. Raises BenchmarkError as `judgements_of`."""
        self.check_rule(rule)
        rows = self.judgements_of([question])[question.question_id]
        grade = self._grade(question, rows)
        said = [f"not graded: {rows[GRADE]['status']}" if grade is None else f"grade {grade:.1f}"]
        if SAME in rows:
            said.append("the other's answer")
        elif SHOWN_FIRST in rows:
            both = [rows[SHOWN_FIRST], rows[SHOWN_SECOND]]
            if unscored := [row["status"] for row in both if row["score"] is None]:
                said.append(f"not compared: {unscored[0]}")
            elif both[0]["score"] != both[1]["score"]:
                said.append("tie, the orders disagree")
            else:
                said.append({1.0: "win", 0.5: "tie", 0.0: "loss"}[both[0]["score"]])
        return "; ".join(said)

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """Who judges, and what that does to the figures."""
        judge, said = self.settings.judge, []
        if self.served_judge is None:
            said.append(
                f"in place of people judges {judge.name}, which is loaded here and scores each answer by itself: it "
                "knows no order, so its consistency is 100 and its first-position rate 50 by construction; values "
                f"within {self.settings.margin:g} tie"
            )
        else:
            said.append(f"in place of people judges {judge.model}")
        if self.settings.allow_same_judge:
            said.append("the judge is one of the scorers that picked the pairs: it prefers what it was followed in")
        return said

    def _grade(self, question: Question, rows: Mapping[str, dict]) -> float | None:
        if GRADE not in rows:
            raise BenchmarkError(f"{question.question_id}: its judgements hold no grade")
        return rows[GRADE]["score"]


@lru_cache(maxsize=1)
def _loaded(kind: type[ScorerSettings], settings: str) -> Scorer:
    """The judge that runs here, loaded once for all recipes."""
    import torch

    return kind.model_validate_json(settings).build("cuda" if torch.cuda.is_available() else "cpu")


def _comparison(rows: Mapping[str, dict]) -> dict[str, float]:
    """The counts of one question's comparison; all 0 where either order has no verdict."""
    counts = dict.fromkeys(_COMPARED, 0.0)
    if SAME in rows:
        return counts | {"compared": 1.0, "same": 1.0}
    first, second = rows[SHOWN_FIRST]["score"], rows[SHOWN_SECOND]["score"]
    if first is None or second is None:
        return counts
    return counts | {
        "compared": 1.0,
        "wins": float(first == second == 1),
        "losses": float(first == second == 0),
        "in_both_orders": 1.0,
        "consistent": float(first == second),
        "verdict_ties": float((first == 0.5) + (second == 0.5)),
        # Shown second it is the other one that stood first.
        "verdict_firsts": float((first == 1) + (second == 0)),
    }


def _reasons(rows: Sequence[Mapping[str, dict]]) -> str:
    reasons = Counter(one["status"] for row in rows for one in row.values() if one["status"] != SCORED)
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(_SHOWN_REASONS))
