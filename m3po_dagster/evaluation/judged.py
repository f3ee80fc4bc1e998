"""Benchmarks whose answers a judge reads: it is asked once, its judgements are stored, and metrics come from those.

Judging costs money and time, so it is a step of its own: `judge_answers` asks and gives a table, `judged` binds that
table, and from then on the benchmark scores like any other, as often as wanted, without asking anybody.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark
from m3po_dagster.evaluation.question import BenchmarkError, Question
from m3po_dagster.method.judging import SCORED, Account, Inquiry, ServedJudgeSettings

JUDGEMENTS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("component", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("words", pa.string(), nullable=False),
    ]
)
"""A row for each thing that is judged of an answer. Without a score `status` says why, and `words` what was said."""


def silent(done: int, of: int) -> None:
    """Progress that nobody looks at."""


class JudgedBenchmark(Benchmark):
    """A benchmark that needs judgements before it can score."""

    _judgements: pa.Table | None = None
    _by_question: Mapping[str, dict[str, dict]] = {}

    @property
    @abstractmethod
    def served_judge(self) -> ServedJudgeSettings | None:
        """The judge that is asked over a network, which needs an account; None for one that runs here."""

    @abstractmethod
    def judge_answers(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, str],
        account: Account | None,
        against: Mapping[str, str] | None = None,
        advance: Callable[[int, int], None] = silent,
    ) -> pa.Table:
        """A table of JUDGEMENTS about these answers, by question_id; `against` holds those they are compared with.

        A served judge is asked through the account: known replies come from its ledger, the rest is paid from its
        budget. None for a judge that runs here. `advance` is told how many requests are done, and of how many.

        Raises BenchmarkError as `check_answers`, EndpointError when the endpoint answers nobody, BudgetSpent when the
        account may not pay. What was answered until then is in the ledger, and asking again goes on from there.
        """

    @abstractmethod
    def judge_identity(self) -> dict:
        """All that decides a judgement beside question and answer: model, request, scale; as JSON."""

    def judged(self, judgements: pa.Table) -> Self:
        """The same benchmark with these judgements, of which its metrics are made.

        Raises BenchmarkError for a judgement that stands twice.
        """
        bound = copy.copy(self)
        found: dict[str, dict[str, dict]] = {}
        for row in judgements.to_pylist():
            mine = found.setdefault(row["question_id"], {})
            if row["component"] in mine:
                raise BenchmarkError(f"{row['question_id']}: {row['component']} was judged twice")
            mine[row["component"]] = row
        bound._judgements, bound._by_question = judgements, found
        return bound

    def judgements_of(self, questions: Sequence[Question]) -> dict[str, dict[str, dict]]:
        """The rows of the bound judgements by question_id and component.

        Raises BenchmarkError when nothing was judged yet, and for questions without judgements, which it names.
        """
        if self._judgements is None:
            raise BenchmarkError(f"benchmark {self.kind}: its answers were not judged yet")
        found = self._by_question
        if missing := [one.question_id for one in questions if one.question_id not in found]:
            raise BenchmarkError(f"{len(missing)} answers were not judged, the first: {missing[0]}")
        return {one.question_id: found[one.question_id] for one in questions}


def judgement(question_id: str, component: str, score: float, weight: float = 1.0, words: str = "") -> dict:
    """A row of JUDGEMENTS with a score."""
    return _row(question_id, component, score, weight, SCORED, words)


def unscored(question_id: str, component: str, reason: str, weight: float = 1.0, words: str = "") -> dict:
    """A row of JUDGEMENTS without a score; `reason` is one of few, `words` may be the judge's own."""
    return _row(question_id, component, None, weight, reason, words)


def unscored_of(inquiry: Inquiry, key: str, question_id: str, component: str, weight: float = 1.0) -> dict:
    """The row for an id that a served judge's replies give nothing for."""
    return unscored(question_id, component, inquiry.last.problems[key], weight, inquiry.last.said)


def _row(question_id: str, component: str, score: float | None, weight: float, status: str, words: str) -> dict:
    return {
        "question_id": question_id,
        "component": component,
        "score": score,
        "weight": weight,
        "status": status,
        "words": words,
    }
