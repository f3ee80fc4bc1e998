"""From a study's benchmark settings to the benchmark."""

from collections.abc import Mapping

from m3po_dagster.evaluation.benchmark import Benchmark
from m3po_dagster.evaluation.chair import Chair
from m3po_dagster.evaluation.ift import Ift
from m3po_dagster.evaluation.judged import JudgedBenchmark
from m3po_dagster.evaluation.mia_bench import MiaBench
from m3po_dagster.evaluation.mme import Mme
from m3po_dagster.evaluation.pope import Pope
from m3po_dagster.evaluation.preference import Preference
from m3po_dagster.evaluation.preference_settings import PreferenceSettings
from m3po_dagster.evaluation.question import Question
from m3po_dagster.evaluation.settings import BenchmarkSettings
from m3po_dagster.evaluation.vizwiz import Vizwiz

BENCHMARKS: dict[str, type[Benchmark]] = {
    item.kind: item for item in (Pope, Mme, Chair, Vizwiz, Ift, MiaBench, Preference)
}
"""Benchmark of each kind."""


def benchmark(settings: BenchmarkSettings | PreferenceSettings) -> Benchmark:
    """The benchmark of the settings' kind; nothing is read yet."""
    return BENCHMARKS[settings.kind](settings)


def judge_identities(benchmarks: Mapping[str, BenchmarkSettings | PreferenceSettings]) -> dict[str, dict]:
    """What decides the judgements of each benchmark that a judge reads, by the benchmark's name, as JSON."""
    made = {name: benchmark(settings) for name, settings in benchmarks.items()}
    return {name: item.judge_identity() for name, item in made.items() if isinstance(item, JudgedBenchmark)}


def load_questions(settings: BenchmarkSettings | PreferenceSettings) -> list[Question]:
    """The benchmark's questions. Raises BenchmarkError that names file and line."""
    return benchmark(settings).load()
