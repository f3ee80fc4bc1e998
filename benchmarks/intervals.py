"""How often a 95 % interval of the leaderboard holds the truth: two recipes that differ by chance alone.

    python benchmarks/intervals.py              # prints a table, writes benchmarks/intervals.json; CPU minutes

Two recipes of the same quality answer the same images, hard or easy for both; each training seed is better or worse by
a draw of its own. Three intervals of their difference, which is none: over images alone; over seeds and images with
seeds drawn with replacement, the usual hierarchical bootstrap; and the leaderboard's own, whose seeds move by Student's
t.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import machine

from m3po_dagster.evaluation.comparison import Sampled, difference, sampled
from m3po_dagster.evaluation.intervals import Clusters, Estimate, Sums, percentile_interval, ratio, resample_weights

IMAGES, TRIALS, RESAMPLES = 200, 1000, 400
SEEDS = ((3, 3), (5, 5), (5, 3), (3, 0))
SPREADS = (0.0, 0.02, 0.10)
"""Standard deviation over seeds of the share of right answers."""


def share(sums: Sums) -> dict[str, Estimate]:
    """The share of right answers."""
    n = sums["all", "questions"]
    return {"share": Estimate(ratio(sums["all", "right"], n), n)}


def recipe(chance: np.random.Generator, ease: np.ndarray, seeds: int, spread: float) -> list[pa.Table]:
    """The per-question table of each seed; one table without drift for a model that was not trained (0 seeds)."""
    drifts = chance.normal(0, spread, seeds) if seeds else np.zeros(1)
    return [
        pa.table(
            {
                "question_id": [str(image) for image in range(IMAGES)],
                "image_uri": [str(image) for image in range(IMAGES)],
                "group": ["all"] * IMAGES,
                "stratum": [""] * IMAGES,
                "questions": np.ones(IMAGES),
                "right": (chance.random(IMAGES) < np.clip(ease + drift, 0, 1)).astype(float),
            }
        )
        for drift in drifts
    ]


def with_replacement(ours: list[pa.Table], theirs: list[pa.Table], trial: int) -> tuple[float, float]:
    """The interval of the usual hierarchical bootstrap: images and, apart for each side, seeds drawn anew."""
    chance = np.random.default_rng((trial, 9))
    weights = resample_weights([""] * IMAGES, RESAMPLES, trial)
    means = []
    for tables in (ours, theirs):
        values = np.array([share(Clusters.of(table).sums(weights))["share"].value for table in tables])
        drawn = chance.integers(0, len(tables), (len(tables), RESAMPLES))
        means.append(np.take_along_axis(values, drawn, axis=0).mean(axis=0))
    return percentile_interval(means[0] - means[1])


def coverage(seeds: tuple[int, int], spread: float) -> dict[str, float]:
    """The share of trials whose interval holds 0, by kind of interval, and the median width of the leaderboard's."""
    held, widths = dict.fromkeys(("images", "seeds with replacement", "seeds and images"), 0), []
    for trial in range(TRIALS):
        chance = np.random.default_rng((trial, *seeds))
        ease = chance.uniform(0.25, 0.75, IMAGES)
        ours, theirs = (recipe(chance, ease, number, spread) for number in seeds)
        untrained = () if seeds[1] else ("theirs",)
        both = sampled(share, {"ours": ours, "theirs": theirs}, RESAMPLES, trial, untrained)
        own = difference(both["ours"], both["theirs"], "share", trial)
        fixed = {name: Sampled(one.values, one.resampled, trained=False) for name, one in both.items()}
        images = difference(fixed["ours"], fixed["theirs"], "share", trial)
        low, high = with_replacement(ours, theirs, trial)
        held["images"] += images.ci_low <= 0 <= images.ci_high
        held["seeds with replacement"] += low <= 0 <= high
        held["seeds and images"] += own.ci_low <= 0 <= own.ci_high
        widths.append(own.ci_high - own.ci_low)
    return {name: count / TRIALS for name, count in held.items()} | {"median width": float(np.median(widths))}


def main() -> None:
    """Prints and writes the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    out = parser.parse_args().out
    rows = []
    print(f"{'seeds':9}{'sd of a seed':>13}{'images':>9}{'replaced':>10}{'ours':>7}{'width':>8}")
    for seeds in SEEDS:
        for spread in SPREADS:
            found = coverage(seeds, spread)
            rows.append({"seeds": list(seeds), "sd_of_a_seed": spread, **found})
            label = f"{seeds[0]} vs {seeds[1] or 'base'}"
            shares = (found["images"], found["seeds with replacement"], found["seeds and images"])
            print(
                f"{label:9}{spread:13.2f}{shares[0]:9.1%}{shares[1]:10.1%}{shares[2]:7.1%}{found['median width']:8.3f}",
                flush=True,
            )
    result = {"machine": machine(), "images": IMAGES, "trials": TRIALS, "resamples": RESAMPLES, "coverage": rows}
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
