"""Checks of a recipe's answers to the benchmarks, by their form alone: whether it answers as it is asked, how long."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import pyarrow as pa

from m3po_dagster.assets.answers import answers_to
from m3po_dagster.assets.checks import ANSWER_FORMAT, LENGTH_DRIFT, Check
from m3po_dagster.evaluation.benchmark import OFFICIAL, Benchmark
from m3po_dagster.evaluation.intervals import Clusters
from m3po_dagster.evaluation.question import Question

LEAST_FORMAT = 90.0
"""Per cent in the asked format below which a metric is more about the form than about what was seen."""
LARGEST_LOSS = 5.0
"""Points fewer than base in the asked format."""
LENGTH_FACTOR = 1.5
"""Recipes of the embedded world that help answer with 0.85 to 1 times the tokens of base."""


def answer_checks(
    suite: Mapping[str, Benchmark],
    questions: Mapping[str, Sequence[Question]],
    scores: pa.Table,
    answers: pa.Table,
    base: Mapping[str, pa.Table],
) -> tuple[Check, Check]:
    """`scores` and `answers` are a recipe's, all seeds and benchmarks; `base` has the base model's answers.

    Those are tables by benchmark, none where the recipe is the base model itself.
    """
    forms = [name for name, item in suite.items() if item.reads_form]
    theirs = {name: _format_of(suite[name], questions[name], base[name]) for name in forms if name in base}
    return answer_format(scores, forms, theirs), length_drift(answers, [n for n in suite if n not in forms], base)


def answer_format(scores: pa.Table, forms: Sequence[str], base: Mapping[str, float]) -> Check:
    """A lost answer format must not be read as hallucination; `forms` are the benchmarks whose rules read the form.

    `base` is the share of the base model's answers in the asked format, in per cent, by benchmark.
    """
    shares = {
        (row["benchmark"], row["seed"]): row["value"]
        for row in scores.to_pylist()
        if row["metric"] == "format" and row["rule"] == OFFICIAL and row["benchmark"] in forms
    }
    if not shares:
        return ANSWER_FORMAT.outcome(True, "no benchmark whose rule reads the form")
    change = {key: share - base[key[0]] for key, share in shares.items() if key[0] in base}
    passed = min(shares.values()) >= LEAST_FORMAT and min(change.values(), default=0.0) >= -LARGEST_LOSS
    found = f"{min(shares.values()):.1f} % in the worst benchmark"
    if change:
        worst = min(change, key=change.__getitem__)
        found += f"; against base {change[worst]:+.1f} points in {_name(worst)}"
    return ANSWER_FORMAT.outcome(passed, found, **{_name(key): share for key, share in shares.items()})


def length_drift(answers: pa.Table, open_questions: Sequence[str], base: Mapping[str, pa.Table]) -> Check:
    """What a judge likes is often length, and what DPO learns often "stop earlier": neither is seeing better.

    `open_questions` are the benchmarks that ask for more than a yes or a no.
    """
    theirs = {name: fmean(base[name]["n_tokens"].to_pylist()) for name in open_questions if name in base}
    tokens: dict[tuple[str, int], list[int]] = {}
    for row in answers.select(["benchmark", "seed", "n_tokens"]).to_pylist():
        if row["benchmark"] in theirs:
            tokens.setdefault((row["benchmark"], row["seed"]), []).append(row["n_tokens"])
    if not tokens:
        return LENGTH_DRIFT.outcome(True, "no open question" if base else "nothing to compare: the base model itself")
    ratios = {key: fmean(lengths) / theirs[key[0]] for key, lengths in tokens.items()}
    worst = max(ratios, key=lambda key: max(ratios[key], 1 / ratios[key]))
    return LENGTH_DRIFT.outcome(
        1 / LENGTH_FACTOR <= ratios[worst] <= LENGTH_FACTOR,
        f"{ratios[worst]:.2f} times base in {_name(worst)}",
        **{_name(key): ratio for key, ratio in ratios.items()},
    )


def _format_of(item: Benchmark, questions: Sequence[Question], base: pa.Table) -> float:
    counts = item.per_question(questions, answers_to(base, 0))
    return float(item.metrics(Clusters.of(counts).once())["format"].value[0])


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]}, seed {key[1]}"
