"""The answers that a study has made, of a shard or a seeded sample: what a judge is fitted on, or will be asked."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.graph import Head, Part, Standing, upstream_of
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import Study


class NoAnswers(ValueError):
    """The study has no answers that are up to date; the message says what to run."""


@dataclass(frozen=True)
class Sample:
    """Prompts with all their distinct answers, and the shards they were drawn from with their data versions."""

    items: tuple[tuple[Prompt, tuple[str, ...]], ...]
    shards: Mapping[str, str]

    @property
    def answers(self) -> int:
        """Number of answers."""
        return sum(len(answers) for _, answers in self.items)


def sample_answers(
    study: Study, store: ArtifactStore, heads: Mapping[Part, Head], standings: Collection[Standing], n: int, seed: int
) -> Sample:
    """`n` prompts (fewer where there are fewer) of the shards whose candidates are up to date, with their candidates.

    Which prompts depends on the seed and their ids alone, not on shards or order. Raises NoAnswers when no shard's
    candidates are up to date, StoreError when the store can't be read.
    """
    states = {item.part[1]: item for item in standings if item.part[0] == "candidates"}
    shards = [shard for shard, item in states.items() if item.state == "fresh"]
    if not shards:
        first = next(iter(states.values()))
        raise NoAnswers(
            f"study {study.name} has no candidates that are up to date (candidates[{first.part[1]}] is {first.state}: "
            f"{first.why}), and a calibration is fitted on answers. Make them first, with the same study: m3po run "
            + " ".join(f"--asset {asset}" for asset in upstream_of("candidates"))
        )
    tables = {shard: _found(store, heads, "candidates", shard) for shard in shards}
    ids = {shard: tables[shard].table(columns=["prompt_id"])["prompt_id"].unique().to_pylist() for shard in shards}
    drawn = sorted((_draw(seed, key), key) for shard in shards for key in ids[shard])[:n]
    wanted = pa.array([key for _, key in drawn], pa.string())
    found: dict[str, tuple[Prompt, tuple[str, ...]]] = {}
    for shard in shards:
        found |= {item[0].prompt_id: item for item in answers_of_shard(study, store, heads, shard, wanted)}
    return Sample(
        tuple(found[key] for _, key in drawn), {shard: heads["candidates", shard].data_version for shard in shards}
    )


def answers_of_shard(
    study: Study, store: ArtifactStore, heads: Mapping[Part, Head], shard: str, wanted: pa.Array | None = None
) -> list[tuple[Prompt, tuple[str, ...]]]:
    """The prompts of a shard whose candidates are made, or the wanted ones of them, with their distinct answers."""
    rows = _found(store, heads, "candidates", shard).table(columns=["prompt_id", "text"])
    if wanted is not None:
        rows = rows.filter(pc.is_in(rows["prompt_id"], wanted))
    answers = {
        key: tuple(row["text"] for row in some)
        for key, some in groupby(rows.to_pylist(), key=lambda row: row["prompt_id"])
    }
    instructions = _found(store, heads, "filtered_instructions", shard).table()
    chosen = instructions.filter(pc.is_in(instructions["prompt_id"], pa.array(answers, pa.string())))
    return [(prompt, answers[prompt.prompt_id]) for prompt in prompts_of(chosen, study)]


def _draw(seed: int, prompt_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()


def _found(store: ArtifactStore, heads: Mapping[Part, Head], asset: str, shard: str) -> Artifact:
    return store.find(asset, shard, heads[asset, shard].fingerprint)
