"""What a benchmark is: questions, the counts each answer gives, and the metrics that the sums of the counts make."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from m3po_dagster.evaluation.intervals import RESAMPLES, Estimate, Metric, Sums, estimate_metrics
from m3po_dagster.evaluation.question import BenchmarkError, Question

OFFICIAL = "official"
"""The rule of a benchmark's own publication, which recipes are compared by."""


@dataclass(frozen=True)
class Headline:
    """A metric that the leaderboard shows, the head of its column, and how many decimals of it are worth reading.

    An arrow at the head's end says which way is better; without one, neither is.
    """

    metric: str
    label: str
    digits: int = 1

    @property
    def better(self) -> int:
        """1 where more is better, -1 where less is, 0 where neither."""
        return {"↑": 1, "↓": -1}.get(self.label[-1], 0)


class Benchmark(ABC):
    """One benchmark, bound to its settings (section 4.1).

    `rules` names the public tools whose reading of an answer it knows; the first is the default. The metrics have the
    same names under every rule. `reads_form` says that an answer in another form than was asked for is a wrong one.
    `against_base` holds the metrics that are comparisons with the base model themselves, which it has none of, with the
    value of an equal.
    """

    kind: ClassVar[str]
    rules: ClassVar[tuple[str, ...]] = (OFFICIAL,)
    reads_form: ClassVar[bool] = False
    headlines: ClassVar[tuple[Headline, ...]]
    against_base: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def load(self) -> list[Question]:
        """The questions in the order of the benchmark's files. Raises BenchmarkError that names file and line."""

    @abstractmethod
    def per_question(
        self, questions: Sequence[Question], answers: Mapping[str, str], rule: str = "official"
    ) -> pa.Table:
        """One row a question: question_id, image_uri, group, stratum, and the counts that the metrics are made from.

        Raises BenchmarkError when an answer is missing, extra or no text, naming the ids, and for an unknown rule.
        """

    @abstractmethod
    def reading(self, question: Question, answer: str, rule: str = "official") -> str:
        """What the rule makes of an answer, for a person to read. Raises BenchmarkError for an unknown rule."""

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, Estimate]:
        """Every metric by name from the sums of the counts; shares in per cent."""

    def notes(self, questions: Sequence[Question]) -> list[str]:
        """What a reader of the scores must know about these questions."""
        return []

    def score(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, str],
        rule: str = "official",
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> list[Metric]:
        """Every metric with its 95 % bootstrap interval over images. Answers are joined on question_id."""
        return estimate_metrics(self.metrics, self.per_question(questions, answers, rule), resamples, seed)

    @classmethod
    def check_rule(cls, rule: str) -> None:
        """Raises BenchmarkError that names the rules there are."""
        if rule not in cls.rules:
            raise BenchmarkError(f"{cls.kind} has no rule {rule!r}; it has {', '.join(cls.rules)}")


def results_table(
    questions: Sequence[Question], groups: Sequence[str], strata: Sequence[str], counts: Mapping[str, Sequence[float]]
) -> pa.Table:
    """A per-question table; the count `questions` is 1 for each."""
    texts = {
        "question_id": [question.question_id for question in questions],
        "image_uri": [question.image_uri for question in questions],
        "group": list(groups),
        "stratum": list(strata),
    }
    numbers = {"questions": [1] * len(questions), **counts}
    return pa.table(
        {name: pa.array(values, pa.string()) for name, values in texts.items()}
        | {name: pa.array([float(value) for value in values], pa.float64()) for name, values in numbers.items()}
    )
