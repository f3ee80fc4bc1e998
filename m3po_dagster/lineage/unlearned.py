"""Which of its pairs an adapter did not learn, worst first, with what they say and what they went through."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.lineage.answers import values
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.pairs import adapter_pairs
from m3po_dagster.storage.artifact import Artifact

TRAJECTORY = "trajectory"


@dataclass(frozen=True)
class Outcome:
    """What became of one pair: its row of margins, and a row of `trajectory` each time it was seen.

    Texts are None when the store no longer holds them, `trajectory` is empty for an adapter that recorded none.
    """

    pair_id: str
    shard: str
    prompt_id: str
    question: str | None
    chosen_text: str | None
    rejected_text: str | None
    margin: Mapping[str, float | None]
    trajectory: tuple[Mapping[str, float | None], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "trajectory": list(self.trajectory)}


def by_gain(adapter: Artifact) -> list[tuple[float, Mapping[str, Any]]]:
    """(gain, row of margins) of each of a trained adapter's pairs, the smallest gain first.

    The gain is the reward margin after training, which is 0 before; of an answer that was trained on alone (SFT), the
    change of its log P. A pair with a gain of 0 or less was not learned.
    """
    rows = adapter.table("margins").to_pylist()
    gains = [
        row["chosen_logp_after"] - row["chosen_logp_before"] if row["reward_margin"] is None else row["reward_margin"]
        for row in rows
    ]
    return sorted(zip(gains, rows, strict=True), key=lambda item: (item[0], item[1]["pair_id"]))


def not_learned(adapter: Artifact) -> list[Mapping[str, Any]]:
    """The rows of margins of the pairs that a trained adapter did not learn, worst first."""
    return [row for gain, row in by_gain(adapter) if gain <= 0]


def outcomes(manifests: Manifests, adapter: Artifact, margins: list[Mapping[str, Any]]) -> list[Outcome]:
    """What became of the pairs of some rows of an adapter's margins, in their order.

    Raises StoreError when its pairs are not in the store any more as it was trained on them.
    """
    if not margins:
        return []
    wanted = pa.array([row["pair_id"] for row in margins], pa.string())
    _, table = adapter_pairs(manifests, adapter, ["pair_id", "prompt_id", "chosen_id", "rejected_id"])
    pairs = {row["pair_id"]: row for row in table.filter(pc.is_in(table["pair_id"], value_set=wanted)).to_pylist()}
    ids = {row[name] for row in pairs.values() for name in ("chosen_id", "rejected_id")} - {None}
    texts, questions = {}, {}
    for ref in manifests.inputs(adapter, "candidates"):
        texts |= values(manifests.used(ref), "text", ids)
    for ref in manifests.inputs(adapter, "filtered_instructions"):
        questions |= _questions(manifests.used(ref), {row["prompt_id"] for row in pairs.values()})
    seen = _trajectories(adapter, wanted)
    return [
        Outcome(
            pair_id=row["pair_id"],
            shard=pairs[row["pair_id"]]["shard"],
            prompt_id=pairs[row["pair_id"]]["prompt_id"],
            question=questions.get(pairs[row["pair_id"]]["prompt_id"]),
            chosen_text=texts.get(pairs[row["pair_id"]]["chosen_id"]),
            rejected_text=texts.get(pairs[row["pair_id"]]["rejected_id"]),
            margin={name: value for name, value in row.items() if name != "pair_id"},
            trajectory=tuple(seen.get(row["pair_id"], ())),
        )
        for row in margins
    ]


def _questions(artifact: Artifact | None, prompt_ids: set[str]) -> dict[str, str]:
    """{prompt_id: its last user turn} of those of `prompt_ids` that an artifact of filtered_instructions has."""
    if artifact is None:
        return {}
    table = artifact.table(columns=["prompt_id", "messages"])
    kept = table.filter(pc.is_in(table["prompt_id"], value_set=pa.array(sorted(prompt_ids), pa.string())))
    return {row["prompt_id"]: row["messages"][-1]["text"] for row in kept.to_pylist()}


def _trajectories(adapter: Artifact, pair_ids: pa.Array) -> dict[str, list[Mapping[str, float | None]]]:
    if TRAJECTORY not in adapter.manifest.tables:
        return {}
    table = adapter.table(TRAJECTORY)
    found: dict[str, list[Mapping[str, float | None]]] = {}
    for row in table.filter(pc.is_in(table["pair_id"], value_set=pair_ids)).sort_by("step").to_pylist():
        found.setdefault(row.pop("pair_id"), []).append(row)
    return found
