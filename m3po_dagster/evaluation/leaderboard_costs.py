"""What a study's results took, as people read it: by stage, and by recipe as in the paper's Table 7."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

STAGES = {
    "candidates": "sampling candidates",
    "logprob_table": "log-probs of candidates",
    "mas_table": "scoring candidates (MAS)",
    "adapter": "training",
    "benchmark_answers": "answering benchmarks",
    "benchmark_judgements": "judging answers",
}
TRAINING = "adapter"

GIGABYTE = 1e9
LEAST_HOURS = 0.0005

Rows = Sequence[Mapping[str, Any]]
"""Rows of a COSTS table."""

STAGE_HEADS = ("stage", "for", "device", "device-hours", "peak memory, GB", "paid to judges")
RECIPE_HEADS = (
    "recipe",
    "data, device-hours (shared)",
    "training a seed, device-hours",
    "both",
    "peak memory, GB (data / training)",
)


def stage_table(costs: Rows) -> list[tuple[str, ...]]:
    """A line for each stage, recipe and device under STAGE_HEADS; a recipe's seeds are one line."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in costs:
        groups.setdefault((row["stage"], row["recipe"], row["device"]), []).append(row)
    return [
        (
            STAGES[stage],
            _whom(stage, recipe, some),
            device,
            hours_text(sum(row["device_hours"] for row in some)),
            memory_text(_peak(some)),
            _money(some),
        )
        for (stage, recipe, device), some in groups.items()
    ]


def recipe_table(costs: Rows, recipes: Sequence[str]) -> list[tuple[str, ...]]:
    """A line for each recipe that was trained, under RECIPE_HEADS: what the next one like it would take."""
    shared = [row for row in costs if row["recipe"] is None]
    data = sum(row["device_hours"] for row in shared)
    lines = []
    for recipe in recipes:
        mine = trainings(costs, recipe)
        if mine:
            hours = fmean(row["device_hours"] for row in mine)
            lines.append(
                (
                    recipe,
                    hours_text(data),
                    hours_text(hours),
                    hours_text(data + hours),
                    f"{memory_text(_peak(shared))} / {memory_text(_peak(mine))}",
                )
            )
    return lines


def trainings(costs: Rows, recipe: str) -> list[Mapping[str, Any]]:
    """The rows of the trainings that a recipe has, one a seed; another recipe may have them too."""
    return [row for row in costs if any(whose.rpartition("|")[0] == recipe for whose in row["trained_for"])]


def sentences(costs: Rows, spent: Mapping[str, float] | None) -> list[str]:
    """What must be known to read the tables. `spent` is what the ledger holds of the study: requests and cost."""
    shared = [row for row in costs if row["recipe"] is None]
    said = [
        "A device-hour is an hour of one GPU, or of the whole process where there is none, from the start of a step to "
        "its commit, loading included. It is that of the run that made a result, however often the result was reused; "
        "of a step that was interrupted, the last run alone counts, but for a training that went on from a checkpoint. "
        "Peak memory is what was allocated on a GPU, else the process's resident set."
    ]
    if shared:
        number = max(row["recipes"] for row in shared)
        said.append(
            f"Candidates and their scores are shared by {number} recipe{'s' if number != 1 else ''} and counted once."
        )
    if lost := sum(row["lost"] for row in costs):
        said.append(f"{lost} results are no longer in the store: what they took is not in these figures.")
    if spent is not None:
        said.append(
            f"The ledger holds {spent['requests']:,} requests of this study to judges, cost {spent['cost']:,.4f}."
        )
    return said


def hours_text(hours: float) -> str:
    """Three digits that count; what takes less than a second or so is not told exactly."""
    return f"{hours:.3g}" if hours == 0 or hours >= LEAST_HOURS else f"< {LEAST_HOURS}"


def memory_text(peak: int | None) -> str:
    """Bytes as gigabytes; a dash where nothing is known."""
    return "–" if peak is None else f"{peak / GIGABYTE:.2f}"


def _peak(rows: Rows) -> int | None:
    return max((row["peak_memory"] for row in rows if row["peak_memory"] is not None), default=None)


def _whom(stage: str, recipe: str | None, some: Rows) -> str:
    if recipe is None:
        return f"{max(row['recipes'] for row in some)} recipes"
    if stage == TRAINING:
        return f"{recipe}, {len(some)} seed{'s' if len(some) != 1 else ''}"
    return recipe


def _money(some: Rows) -> str:
    paid = [row["money"] for row in some if row["money"] is not None]
    return f"{sum(paid):,.4f}" if paid else "–"
