"""What a benchmark's rules make of an answer, beside it: a lost form is then not read as a wrong answer."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from m3po_dagster.evaluation.benchmark import Benchmark
from m3po_dagster.evaluation.judged import JudgedBenchmark
from m3po_dagster.evaluation.question import BenchmarkError, Question
from m3po_dagster.evaluation.registry import benchmark
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.study import Study


def bound_benchmark(study: Study, name: str, artifact: Artifact, seed: int) -> Benchmark:
    """The benchmark of a recipe's scores; with what its judge said of this seed's answers, where it has one."""
    item = benchmark(study.benchmarks[name])
    if not isinstance(item, JudgedBenchmark):
        return item
    filters = [("benchmark", "=", name), ("seed", "=", seed)]
    table = pq.read_table(artifact.path("judgements.parquet"), filters=filters)
    return item.judged(table.drop_columns(["seed", "benchmark"]))


def question_of(row: Mapping, root: Path) -> Question:
    """The question of a row of benchmark answers."""
    uri = row["image_uri"]
    return Question(row["question_id"], root / uri, uri, row["question"], row["expected"])


def readings(item: Benchmark, question: Question, answer: str) -> tuple[tuple[str, str], ...]:
    """(rules, what they make of the answer), rules that agree together; empty where a rule can't read it."""
    by_reading: dict[str, list[str]] = {}
    try:
        for rule in item.rules:
            by_reading.setdefault(item.reading(question, answer, rule), []).append(rule)
    except (BenchmarkError, OSError):
        return ()
    return tuple((", ".join(rules), said) for said, rules in by_reading.items())
