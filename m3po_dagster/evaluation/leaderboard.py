"""The leaderboard: every recipe against the base model, with seeds and paired intervals (paper, tables 1 to 4)."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import pyarrow as pa

from m3po_dagster.evaluation.benchmark import Benchmark, Headline
from m3po_dagster.evaluation.intervals import RESAMPLES, Difference, paired_difference

LEADERBOARD = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("seed_sd", pa.float64()),
        pa.field("n_seeds", pa.int64(), nullable=False),
        pa.field("difference", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("significant", pa.bool_()),
    ]
)
"""Mean and standard deviation over training seeds; the difference to base with its 95 % interval, null for base."""

_NOTE = (
    "`*`: the 95 % interval of the difference to {base} (bootstrap over images, paired) excludes 0; intervals are not "
    "corrected for the number of comparisons and do not cover how training seeds scatter. `±`: standard deviation over "
    "training seeds."
)


def leaderboard(
    scores: pa.Table,
    per_question: Mapping[tuple[str, int, str], pa.Table],
    benchmarks: Mapping[str, Benchmark],
    base: str = "base",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pa.Table:
    """A row for each recipe, benchmark and metric, base first, then the recipes in the order of `scores`.

    `scores` has the columns recipe, seed, benchmark, metric and value; `per_question` holds the per-question table of
    each (recipe, seed, benchmark); `benchmarks` the benchmark of each name. Raises ValueError when base or a
    per-question table is missing, or when two recipes did not answer the same questions.
    """
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in scores.select(["recipe", "seed", "benchmark", "metric", "value"]).to_pylist():
        by_metric = values.setdefault((row["recipe"], row["benchmark"]), {})
        by_metric.setdefault(row["metric"], {})[row["seed"]] = row["value"]
    recipes = list(dict.fromkeys(recipe for recipe, _ in values))
    if base not in recipes:
        raise ValueError(f"no scores of recipe {base}, which the others are compared with; there are {recipes}")
    recipes.sort(key=lambda recipe: recipe != base)

    def results(recipe: str, name: str) -> list[pa.Table]:
        seeds = sorted({one for by_seed in values[recipe, name].values() for one in by_seed})
        if missing := [one for one in seeds if (recipe, one, name) not in per_question]:
            raise ValueError(f"no per-question results of recipe {recipe}, seed {missing[0]}, benchmark {name}")
        return [per_question[recipe, one, name] for one in seeds]

    rows = []
    for recipe in recipes:
        for name, item in benchmarks.items():
            if (recipe, name) not in values:
                continue
            differences: dict[str, Difference] = {}
            if recipe != base:
                if (base, name) not in values:
                    raise ValueError(f"no scores of recipe {base} on benchmark {name}, which {recipe} is compared with")
                ours, theirs = results(recipe, name), results(base, name)
                differences = paired_difference(item.metrics, ours, theirs, resamples, seed)
            for metric, by_seed in values[recipe, name].items():
                rows.append(_row(recipe, name, metric, list(by_seed.values()), differences.get(metric)))
    return pa.Table.from_pylist(rows, LEADERBOARD)


def markdown(
    table: pa.Table, benchmarks: Mapping[str, Benchmark], base: str = "base", notes: Sequence[str] = ()
) -> str:
    """The leaderboard's headline metrics as a Markdown table, a line a recipe, with a note on how to read it.

    `notes` are what a reader must know about the benchmarks.
    """
    cells = {(row["recipe"], row["benchmark"], row["metric"]): row for row in table.to_pylist()}
    recipes = list(dict.fromkeys(table.column("recipe").to_pylist()))
    columns = [
        (name, metric, label)
        for name, metric, label in headline_columns(benchmarks)
        if any((recipe, name, metric) in cells for recipe in recipes)
    ]
    lines = [["recipe", *(label for _, _, label in columns)], ["---"] + ["---:"] * len(columns)]
    for recipe in recipes:
        lines.append([recipe, *(_cell(cells.get((recipe, name, metric))) for name, metric, _ in columns)])
    shown = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([shown, _NOTE.format(base=base), *notes]) + "\n"


def headline_columns(benchmarks: Mapping[str, Benchmark]) -> list[tuple[str, str, str]]:
    """Benchmark, metric and head of every column that the leaderboard shows."""
    return [
        (name, headline.metric, _label(name, item, headline))
        for name, item in benchmarks.items()
        for headline in item.headlines
    ]


def _row(recipe: str, name: str, metric: str, values: Sequence[float], difference: Difference | None) -> dict:
    row = {
        "recipe": recipe,
        "benchmark": name,
        "metric": metric,
        "mean": mean(values),
        "seed_sd": stdev(values) if len(values) > 1 else None,
        "n_seeds": len(values),
    }
    if difference:
        row |= {
            "difference": difference.value,
            "ci_low": difference.ci_low,
            "ci_high": difference.ci_high,
            "significant": difference.significant,
        }
    return row


def _label(name: str, item: Benchmark, headline: Headline) -> str:
    return headline.label if name == item.kind else f"{name}: {headline.label}"


def _cell(row: dict | None) -> str:
    if row is None:
        return "–"
    spread = "" if row["seed_sd"] is None else f" ± {row['seed_sd']:.1f}"
    return f"{row['mean']:.1f}{spread}{' *' if row['significant'] else ''}"
