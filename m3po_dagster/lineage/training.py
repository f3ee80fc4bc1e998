"""What a training made of some of its pairs: the optimiser steps they were seen in, and the reward margin after it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.storage.artifact import Artifact


@dataclass(frozen=True)
class Training:
    """How one trained adapter saw one pair.

    `steps` are the optimiser steps that saw it, once for each time; `seen_in_all` is how often the training saw any
    pair. `margin` is its row of the adapter's table of margins, without the pair_id: reward margin after training, and
    log-probs in nats before and after. `recipe` is the one under whose name it lies; `recipe_adapters` are the
    fingerprints of the adapters (lora_adapter) that it belongs to of the recipe that selected the pair, which is
    another one where two come to the same training.
    """

    recipe: str
    seed: int | None
    fingerprint: str
    created: str
    steps: tuple[int, ...]
    seen_in_all: int
    margin: Mapping[str, float | None]
    recipe_adapters: tuple[str, ...]

    @property
    def share(self) -> float:
        """The pair's weight: times it was seen over the times that any pair was seen."""
        return len(self.steps) / self.seen_in_all if self.seen_in_all else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        own = {**vars(self), "steps": list(self.steps), "recipe_adapters": list(self.recipe_adapters)}
        return {**own, "times": len(self.steps), "share": self.share}


def seen(adapter: Artifact, pair_ids: Collection[str]) -> tuple[dict[str, tuple[int, ...]], int]:
    """{pair_id: the steps that saw it} of those of `pair_ids` in the training log, and how often it has any pair."""
    log = adapter.table("training_log", columns=["step", "pair_ids"]).combine_chunks()
    lists = log["pair_ids"]
    ids, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
    mask = pc.is_in(ids, value_set=pa.array(list(pair_ids), pa.string()))
    steps = pc.take(log["step"], pc.filter(parents, mask)).to_pylist()
    found: dict[str, list[int]] = {}
    for pair_id, step in zip(pc.filter(ids, mask).to_pylist(), steps, strict=True):
        found.setdefault(pair_id, []).append(step)
    return {pair_id: tuple(sorted(numbers)) for pair_id, numbers in found.items()}, len(ids)


def margins(adapter: Artifact, pair_ids: Collection[str]) -> dict[str, dict[str, float | None]]:
    """{pair_id: its row of margins without the id} of those of `pair_ids` that the adapter was trained on."""
    table = adapter.table("margins")
    kept = table.filter(pc.is_in(table["pair_id"], value_set=pa.array(list(pair_ids), pa.string())))
    return {row.pop("pair_id"): row for row in kept.to_pylist()}
