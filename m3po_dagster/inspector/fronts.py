"""The candidates of a shard that some alpha and delta may pick, kept so that a new point is scored in milliseconds.

Of a prompt's losers only its front can ever be R_l (see `method.selection_sweep`). Fronts of different lengths are
stored place by place: first every prompt's first entry, then the second entries of the prompts that have one, with the
prompts in the order of falling length. So each place is one dense array and nothing is padded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3po_dagster.inspector.shards import Shard
from m3po_dagster.method.selection_matrix import Block, ScoreMatrix
from m3po_dagster.method.selection_settings import SelectionSettings
from m3po_dagster.method.selection_sweep import find_front
from m3po_dagster.storage.fingerprint import canonical_json

ROWS_A_STEP = 1 << 16
_RANKED = ("score", "score_noise", "noise_seed", "candidates")
"""What decides which scores a candidate is ranked by; the rest of the settings looks at the same arrays."""
VERSION = 1
"""Part of a cached file's name: another one when the arrays change."""


@dataclass(frozen=True)
class Fronts:
    """The fronts of Q prompts with a pair, E entries in all."""

    prompt: np.ndarray  # (Q,) position in the shard
    winner: np.ndarray  # (Q,) k of R_w
    begins: np.ndarray  # (places + 1,) where each place's entries begin, one a prompt in the order of `prompt`
    gap: np.ndarray  # (E,) MAS(R_w) - MAS(R_j)
    logp_gap: np.ndarray  # (E,) conf(R_w) - conf(R_j)
    length_difference: np.ndarray  # (E,) tokens of R_w minus tokens of R_j
    k: np.ndarray  # (E,) k of R_j

    def save(self, path: Path) -> None:
        """Writes the arrays; another process never sees half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez(unfinished, **{field.name: getattr(self, field.name) for field in fields(self)})
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Fronts":
        """What `save` wrote. Raises OSError, ValueError, EOFError, KeyError or zipfile.BadZipFile for anything else."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def front_key(settings: SelectionSettings) -> str:
    """Equal for settings of rule m3p that differ in alpha and delta alone: they share their fronts."""
    same = settings.model_dump(mode="json", exclude={"alpha", "delta"})
    return hashlib.sha256(canonical_json([VERSION, same]).encode()).hexdigest()[:16]


def file_name(shard: Shard, settings: SelectionSettings) -> str:
    """A name that changes with everything the fronts are made from."""
    made_from = hashlib.sha256(canonical_json(list(shard.content)).encode()).hexdigest()[:32]
    return f"fronts-{made_from}-{front_key(settings)}.npz"


def build_fronts(shard: Shard, each: Sequence[SelectionSettings]) -> list[Fronts]:
    """The fronts of a scored shard for several settings of rule m3p in one pass over its texts.

    A few ten thousand rows are in memory at a time. Raises OSError, pa.ArrowException or ScoreTableError.
    """
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in each]
    same_scores: dict[tuple, list[int]] = {}
    for number, settings in enumerate(each):
        same_scores.setdefault(tuple(getattr(settings, name) for name in _RANKED), []).append(number)
    for table in _score_tables(shard, each):
        for numbers in same_scores.values():
            # Texts are compared once for all that rank by the same scores.
            matrix = ScoreMatrix.from_table(table, each[numbers[0]])
            prompts = pc.index_in(matrix.prompt_ids, value_set=shard.prompt_ids).to_numpy()
            k = table["k"].to_numpy()
            k = k if matrix.rows is None else k[matrix.rows]
            for block in matrix.blocks():
                here = slice(block.start, block.start + len(block.value))
                for number in numbers:
                    found[number].append(_entries(block, prompts[here], matrix.starts[here], k, each[number]))
    return [_by_place(parts) for parts in found]


def _entries(
    block: Block, prompts: np.ndarray, first: np.ndarray, k: np.ndarray, settings: SelectionSettings
) -> dict[str, np.ndarray]:
    """A block's fronts prompt by prompt; `prompts` and `first` are its prompts' positions and first entries in `k`."""
    front, paired, _ = find_front(block, settings)
    inside = front.column >= 0
    sizes = np.count_nonzero(inside, axis=1)
    return {
        "prompt": prompts[paired],
        "winner": k[first[paired] + front.winner],
        "sizes": sizes,
        "gap": front.gap[inside],
        "logp_gap": front.logp_gap[inside],
        "length_difference": front.length_difference[inside],
        "k": k[np.repeat(first[paired], sizes) + front.column[inside]],
    }


def _score_tables(shard: Shard, each: Sequence[SelectionSettings]) -> Iterator[pa.Table]:
    """The columns that selection by these settings reads, whole prompts at a time."""
    names = list(dict.fromkeys(settings.score for settings in each))
    scores = pq.read_table(shard.mas.path("data.parquet"), columns=names)
    inside = pq.read_table(shard.logprobs.path("data.parquet"), columns=["sum_logp", "n_tokens"])
    # Ids are only wanted for noise, and are most of what would be read.
    ids = ["candidate_id"] if any(settings.score_noise for settings in each) else []
    start, held = 0, None
    with pq.ParquetFile(shard.candidates.path("data.parquet"), pre_buffer=False) as file:
        total = file.metadata.num_rows
        for name, table in (("mas_table", scores), ("logprob_table", inside)):
            if table.num_rows != total:
                raise ValueError(f"{name}[{shard.name}] has other rows than candidates: materialise it again")
        for batch in file.iter_batches(ROWS_A_STEP, columns=["prompt_id", "k", "text", "finish_reason", *ids]):
            table = pa.Table.from_batches([batch])
            table = table if held is None else pa.concat_tables([held, table])
            end = table.num_rows
            if start + end < total:  # the last prompt may go on in the next batch
                last = table["prompt_id"][-1].as_py()
                end = pc.index(table["prompt_id"], last).as_py()
            whole, held = table.slice(0, end), table.slice(end)
            if end:
                for source in (scores, inside):
                    for column in source.column_names:
                        whole = whole.append_column(column, source[column].slice(start, end))
                yield whole
            start += end


_KINDS = {
    "prompt": np.int32,
    "winner": np.int32,
    "sizes": np.int64,
    "gap": np.float64,
    "logp_gap": np.float64,
    "length_difference": np.int32,
    "k": np.int32,
}


def _by_place(parts: Sequence[dict[str, np.ndarray]]) -> Fronts:
    """From entries prompt by prompt, `sizes` of them a prompt, to entries place by place."""
    flat = {
        name: np.concatenate([np.empty(0, kind), *(part[name].astype(kind) for part in parts)])
        for name, kind in _KINDS.items()
    }
    sizes = flat.pop("sizes")
    prompt, winner = flat.pop("prompt"), flat.pop("winner")
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    place = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    entries = np.lexsort((np.repeat(rank, sizes), place))
    return Fronts(
        prompt=prompt[order],
        winner=winner[order],
        begins=np.append(0, np.cumsum(np.bincount(place))).astype(np.int64),
        **{name: values[entries] for name, values in flat.items()},
    )
