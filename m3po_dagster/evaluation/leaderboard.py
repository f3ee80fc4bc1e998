"""The leaderboard: every recipe against the base model and others, over seeds and images (paper, tables 1 to 6)."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark
from m3po_dagster.evaluation.comparison import RESAMPLES, Difference, Sampled, difference, sampled
from m3po_dagster.evaluation.multiple_comparisons import holm

LEADERBOARD = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("against", pa.string(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("seed_sd", pa.float64()),
        pa.field("n_seeds", pa.int64(), nullable=False),
        pa.field("difference", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("interval_over", pa.string()),
        pa.field("significant", pa.bool_()),
        pa.field("p_value", pa.float64()),
        pa.field("p_corrected", pa.float64()),
        pa.field("significant_corrected", pa.bool_()),
        pa.field("same_as", pa.string()),
    ]
)
"""A row for each recipe, benchmark, metric and recipe it is compared with; null where there is nothing to compare."""

ALPHA = 0.05
"""A corrected p-value below it counts as significant."""


def leaderboard(
    scores: pa.Table,
    per_question: Mapping[tuple[str, int, str], pa.Table],
    benchmarks: Mapping[str, Benchmark],
    compare_with: Sequence[str] = (),
    base: str = "base",
    same_as: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pa.Table:
    """A table LEADERBOARD, base first, then the recipes in the order of `scores`; compared with base, always first.

    `scores` has the columns recipe, seed, benchmark, metric and value; `per_question` holds the per-question table of
    each (recipe, seed, benchmark); `benchmarks` the benchmark of each name. `same_as` names for a recipe an equal one
    before it: with the same seeds too, it has that one's figures and counts in no correction.

    `p_corrected` is Holm's over the recipes that a metric compares with the same one. Of two recipes to compare with,
    the later one is compared with the earlier; the other way round, it is that row with its signs turned.

    Raises ValueError when base or a per-question table is missing, when a recipe to compare with has no scores, or when
    two recipes did not answer the same questions.
    """
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in scores.select(["recipe", "seed", "benchmark", "metric", "value"]).to_pylist():
        by_metric = values.setdefault((row["recipe"], row["benchmark"]), {})
        by_metric.setdefault(row["metric"], {})[row["seed"]] = row["value"]
    recipes = list(dict.fromkeys(recipe for recipe, _ in values))
    same_as = {
        recipe: first for recipe, first in (same_as or {}).items() if _seeds(values, recipe) == _seeds(values, first)
    }
    references = list(dict.fromkeys([base, *compare_with]))
    if missing := [name for name in references if name not in recipes]:
        raise ValueError(f"no scores of recipe {missing[0]}, which the others are compared with; there are {recipes}")
    recipes.sort(key=lambda recipe: recipe != base)
    rows: dict[str, list[dict]] = {recipe: [] for recipe in recipes}
    for name, item in benchmarks.items():
        there = [recipe for recipe in recipes if (recipe, name) in values]
        if there and base not in there:
            raise ValueError(f"no scores of recipe {base} on benchmark {name}, which {there[0]} is compared with")
        sides = {
            recipe: _tables(recipe, name, values[recipe, name], per_question)
            for recipe in there
            if recipe not in same_as
        }
        found = sampled(item.metrics, sides, resamples, seed, untrained=(base,)) if sides else {}
        for recipe in there:
            for metric, by_seed in values[recipe, name].items():
                for against in references:
                    compared = None
                    if _turned_from(recipe, against, references, same_as) is None:
                        compared = _compared(item, found, same_as, recipe, against, metric, base, seed)
                    row = _row(recipe, name, metric, against, list(by_seed.values()), compared)
                    rows[recipe].append({**row, "same_as": same_as.get(recipe)})
    result = [row for some in rows.values() for row in some]
    _correct(result)
    _turn(result, references, same_as)
    return pa.Table.from_pylist(result, LEADERBOARD)


def _seeds(values: Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]], recipe: str) -> set[int]:
    by_metric = [found for (whose, _), some in values.items() if whose == recipe for found in some.values()]
    return {seed for by_seed in by_metric for seed in by_seed}


def _tables(
    recipe: str, name: str, by_metric: Mapping[str, Mapping[int, float]], per_question: Mapping
) -> list[pa.Table]:
    seeds = sorted({one for by_seed in by_metric.values() for one in by_seed})
    if missing := [one for one in seeds if (recipe, one, name) not in per_question]:
        raise ValueError(f"no per-question results of recipe {recipe}, seed {missing[0]}, benchmark {name}")
    return [per_question[recipe, one, name] for one in seeds]


def _compared(
    item: Benchmark,
    found: Mapping[str, Sampled],
    same_as: Mapping[str, str],
    recipe: str,
    against: str,
    metric: str,
    base: str,
    seed: int,
) -> Difference | None:
    """None for a recipe beside itself or its equal, and where either has no such metric."""
    ours, theirs = (same_as.get(one, one) for one in (recipe, against))
    if ours == theirs or ours not in found:
        return None
    if theirs == base and metric in item.against_base:
        return difference(found[ours], item.against_base[metric], metric, seed)
    return difference(found[ours], found[theirs], metric, seed) if theirs in found else None


def _row(
    recipe: str, name: str, metric: str, against: str, values: Sequence[float], found: Difference | None
) -> dict[str, object]:
    row = {
        "recipe": recipe,
        "benchmark": name,
        "metric": metric,
        "against": against,
        "mean": mean(values),
        "seed_sd": stdev(values) if len(values) > 1 else None,
        "n_seeds": len(values),
    }
    if found:
        row |= {
            "difference": found.value,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "interval_over": found.over,
            "significant": found.significant,
            "p_value": found.p_value,
        }
    return row


def _turned_from(
    recipe: str, against: str, references: Sequence[str], same_as: Mapping[str, str]
) -> tuple[str, str] | None:
    """The two recipes whose row is this one's from the other side; None for a row that is compared itself."""
    earlier = references[: references.index(against)]
    firsts = {same_as.get(name, name): name for name in reversed(earlier)}
    first = same_as.get(recipe, recipe)
    if first not in firsts or first == same_as.get(against, against):
        return None
    return against, firsts[first]


def _turn(rows: Sequence[dict], references: Sequence[str], same_as: Mapping[str, str]) -> None:
    """Fills the rows that are others from the other side: the same two recipes have one interval and one verdict."""
    known = {(row["recipe"], row["against"], row["benchmark"], row["metric"]): row for row in rows}
    for (recipe, against, *figure), row in known.items():
        pair = _turned_from(recipe, against, references, same_as)
        found = known.get((*pair, *figure)) if pair else None
        if found and "p_value" in found:
            row |= {name: value for name, value in found.items() if name not in row}
            # From 0, for -0.0 is no figure.
            row |= {
                "difference": 0 - found["difference"],
                "ci_low": 0 - found["ci_high"],
                "ci_high": 0 - found["ci_low"],
            }


def _correct(rows: Sequence[dict]) -> None:
    """Adds Holm's p-values to the rows that have one, over the different recipes of a metric and a reference."""
    families: dict[tuple, list[dict]] = {}
    for row in rows:
        if "p_value" in row:
            families.setdefault((row["benchmark"], row["metric"], row["against"]), []).append(row)
    for family in families.values():
        apart = [row for row in family if row["same_as"] is None]
        corrected = dict(zip((row["recipe"] for row in apart), holm([row["p_value"] for row in apart]), strict=True))
        for row in family:
            row["p_corrected"] = corrected[row["same_as"] or row["recipe"]]
            row["significant_corrected"] = row["p_corrected"] < ALPHA
