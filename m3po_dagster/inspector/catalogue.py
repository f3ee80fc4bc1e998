"""Everything the pages show of one state of a study: its prompts over all shards, its recipes' pairs, its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.inspector.commands import Commands
from m3po_dagster.inspector.pairs import Pairs
from m3po_dagster.inspector.shards import Shard
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.study import Study


@dataclass(frozen=True)
class Place:
    """Where a prompt is: its shard and its position there."""

    shard: Shard
    position: int


@dataclass(frozen=True)
class Recipe:
    """A recipe's pairs over all shards: arrays with one entry a prompt of the study (see `pairs.Pairs`).

    `artifacts` are the preference_pairs by shard; `stale` names the shards whose pairs are not up to date, `why_stale`
    what is wrong with them.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    score: np.ndarray
    mas_gap: np.ndarray
    logp_gap: np.ndarray
    more: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]
    artifacts: Mapping[str, Artifact]
    stale: tuple[str, ...]
    why_stale: str

    @property
    def paired(self) -> np.ndarray:
        """(P,) True where there is a pair."""
        return self.chosen >= 0


def merged(pairs: Sequence[Pairs], artifacts: Mapping[str, Artifact], stale: Sequence[str], why_stale: str) -> Recipe:
    """The pairs of all shards as one, with the reasons numbered anew."""
    reasons = tuple(dict.fromkeys(name for part in pairs for name in part.reasons))
    codes = []
    for part in pairs:
        number = np.array([reasons.index(name) for name in part.reasons] + [-1], np.int16)
        codes.append(number[part.reason])

    def flat(name: str, kind: type) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in pairs)]).astype(kind)

    return Recipe(
        chosen=flat("chosen", np.int32),
        rejected=flat("rejected", np.int32),
        score=flat("score", np.float64),
        mas_gap=flat("mas_gap", np.float64),
        logp_gap=flat("logp_gap", np.float64),
        more=flat("more", np.int32),
        reason=np.concatenate([np.empty(0, np.int16), *codes]).astype(np.int16),
        reasons=reasons,
        artifacts=artifacts,
        stale=tuple(stale),
        why_stale=why_stale,
    )


@dataclass(frozen=True)
class Catalogue:
    """One state of a study, never changed. A prompt's number counts over the shards in the study's order."""

    number: int
    study: Study
    commands: Commands  # for this study, as the sentences name them
    study_sha256: str
    shards: tuple[Shard, ...]
    recipes: Mapping[str, Recipe]  # those that select pairs, in the study's order
    scores: Mapping[str, Artifact]  # benchmark_scores by recipe
    missing: tuple[str, ...]  # what was not made yet, a sentence each
    stale: tuple[str, ...]  # what is shown but not up to date, a sentence each

    @cached_property
    def begins(self) -> np.ndarray:
        """(shards + 1,) number of each shard's first prompt; the last is the number of prompts."""
        return np.cumsum([0, *(len(shard.prompt_ids) for shard in self.shards)])

    @property
    def size(self) -> int:
        """Number of prompts."""
        return int(self.begins[-1])

    def place(self, number: int) -> Place:
        """The shard and position of a prompt's number."""
        index = int(np.searchsorted(self.begins, number, side="right")) - 1
        return Place(self.shards[index], number - int(self.begins[index]))

    def find(self, prompt_id: str) -> int | None:
        """The number of the prompt, or None when the study has no such prompt."""
        for shard, begin in zip(self.shards, self.begins, strict=False):
            position = pc.index(shard.prompt_ids, prompt_id).as_py()
            if position >= 0:
                return int(begin) + position
        return None

    @cached_property
    def questions(self) -> pa.ChunkedArray:
        """Every prompt's question."""
        return pa.chunked_array([shard.questions for shard in self.shards], pa.string())

    @cached_property
    def prompt_ids(self) -> pa.ChunkedArray:
        """Every prompt's id."""
        return pa.chunked_array([shard.prompt_ids for shard in self.shards], pa.string())

    @cached_property
    def image_uris(self) -> pa.ChunkedArray:
        """Every prompt's image."""
        return pa.chunked_array([shard.image_uris for shard in self.shards], pa.string())

    @cached_property
    def n_candidates(self) -> np.ndarray:
        """(P,) distinct candidates of every prompt."""
        return self._flat("n_candidates", np.int32)

    @cached_property
    def best_mas(self) -> np.ndarray:
        """(P,) best MAS; NaN when nothing is scored."""
        return self._flat("best_mas", np.float64)

    @cached_property
    def mas_spread(self) -> np.ndarray:
        """(P,) best minus worst MAS; NaN when nothing is scored."""
        return self._flat("mas_spread", np.float64)

    def _flat(self, name: str, kind: type) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *(getattr(shard, name) for shard in self.shards)])
