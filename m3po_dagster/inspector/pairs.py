"""A recipe's pairs as arrays with one entry a prompt, and the reason where a prompt has none.

Some rules give a prompt several rows, the best first: that one is shown, and how many more there are.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3po_dagster.inspector.shards import Shard
from m3po_dagster.storage.artifact import Artifact

NOT_MADE = "pairs_not_made"
NOT_SAMPLED = "no_candidates"
PAIR_COLUMNS = ["prompt_id", "chosen_id", "rejected_id", "m3p_score", "mas_gap", "logp_gap"]


@dataclass(frozen=True)
class Pairs:
    """What a recipe chose in a shard. Arrays (P,), in the order of the shard's prompts."""

    chosen: np.ndarray  # k of R_w; -1 for no pair
    rejected: np.ndarray  # k of R_l; -1 for none
    score: np.ndarray  # S(R_l); NaN without
    mas_gap: np.ndarray  # NaN without
    logp_gap: np.ndarray  # NaN without
    more: np.ndarray  # further pairs of the prompt, beside the one above
    reason: np.ndarray  # index into `reasons`; -1 where there is a pair
    reasons: tuple[str, ...]


def read_pairs(shard: Shard, artifact: Artifact | None) -> Pairs:
    """Joins a preference_pairs artifact to its shard's prompts; without an artifact no prompt has a pair.

    Raises OSError or pa.ArrowException for files that can't be read, ValueError for pairs of other prompts.
    """
    size = len(shard.prompt_ids)
    chosen, rejected = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    score, mas_gap, logp_gap = (np.full(size, np.nan) for _ in range(3))
    more = np.zeros(size, np.int32)
    reasons = (NOT_SAMPLED, NOT_MADE)
    reason = np.where(shard.n_candidates == 0, 0, 1).astype(np.int16)
    if artifact is not None:
        table = pq.read_table(artifact.path("data.parquet"), columns=PAIR_COLUMNS)
        place, first, count = np.unique(
            _places(shard, table["prompt_id"], artifact), return_index=True, return_counts=True
        )
        table, more[place] = table.take(pa.array(first)), count - 1
        chosen[place], rejected[place] = _k(table["chosen_id"]), _k(table["rejected_id"])
        for array, name in ((score, "m3p_score"), (mas_gap, "mas_gap"), (logp_gap, "logp_gap")):
            array[place] = table[name].to_numpy()
        reason[place] = -1
        dropped = pq.read_table(artifact.path("dropped.parquet"), columns=["item_id", "reason"])
        names = pc.unique(dropped["reason"])
        codes = pc.index_in(dropped["reason"], value_set=names).combine_chunks().to_numpy(zero_copy_only=False)
        reason[_places(shard, dropped["item_id"], artifact)] = codes + len(reasons)
        reasons += tuple(names.to_pylist())
    return Pairs(chosen, rejected, score, mas_gap, logp_gap, more, reason, reasons)


def _places(shard: Shard, ids: pa.ChunkedArray, artifact: Artifact) -> np.ndarray:
    place = pc.index_in(ids, value_set=shard.prompt_ids).combine_chunks()
    if place.null_count:
        raise ValueError(f"{artifact.key} has pairs of {place.null_count} prompts that shard {shard.name} lacks")
    return place.to_numpy()


def _k(candidate_ids: pa.ChunkedArray) -> np.ndarray:
    """The k of each candidate id, which ends in a colon and k; -1 for null."""
    digits = pc.replace_substring_regex(candidate_ids, "^.*:", "")
    return pc.fill_null(pc.cast(digits, pa.int32()), -1).to_numpy()
