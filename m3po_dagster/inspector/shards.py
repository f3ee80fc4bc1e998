"""What the inspector knows of a shard's prompts without opening a text: ids, questions, where each prompt's rows lie.

Arrays have one entry a prompt, in the order of filtered_instructions. Texts and token ids stay in the Parquet files;
`rows.read_rows` fetches one prompt's when it is shown.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m3po_dagster.storage.artifact import Artifact

PROMPT_COLUMNS = ["prompt_id", "source", "image_uri", "image_sha256", "messages"]


@dataclass(frozen=True)
class Shard:
    """A shard's prompts as far as they were made.

    `mas` and `logprobs` are None when they are missing or were made from other candidates than the current ones.
    """

    name: str
    prompts: Artifact
    candidates: Artifact | None
    mas: Artifact | None
    logprobs: Artifact | None
    prompt_ids: pa.StringArray
    questions: pa.StringArray  # the last user turn
    sources: pa.StringArray
    image_uris: pa.StringArray
    image_hashes: pa.StringArray
    first_row: np.ndarray  # (P,) the prompt's first row in candidates; -1 when it has none
    n_candidates: np.ndarray  # (P,)
    best_mas: np.ndarray  # (P,) NaN when nothing is scored
    mas_spread: np.ndarray  # (P,) best minus worst MAS; NaN when nothing is scored

    @property
    def scored(self) -> bool:
        """Whether the shard has everything that selection needs."""
        return self.candidates is not None and self.mas is not None and self.logprobs is not None

    @property
    def content(self) -> tuple[str, ...]:
        """Fingerprints and data versions of what selection reads; only for a shard that is `scored`."""
        read = (self.candidates, self.mas, self.logprobs)
        return tuple(text for artifact in read for text in (artifact.fingerprint, artifact.data_version))


def read_shard(
    name: str, prompts: Artifact, candidates: Artifact | None, mas: Artifact | None, logprobs: Artifact | None
) -> Shard:
    """Reads what a shard's arrays are made from: about a second for 150K prompts of 32 candidates.

    Raises OSError or pa.ArrowException for a file that can't be read, ValueError for tables that don't fit.
    """
    table = pq.read_table(prompts.path("data.parquet"), columns=PROMPT_COLUMNS)
    ids = table["prompt_id"].combine_chunks()
    size = len(ids)
    first_row, n_candidates = np.full(size, -1, np.int64), np.zeros(size, np.int32)
    best, spread = np.full(size, np.nan), np.full(size, np.nan)
    if candidates is not None:
        owners, starts, counts = _runs(candidates)
        place = pc.index_in(owners, value_set=ids)
        if place.null_count:
            raise ValueError(
                f"candidates[{name}] has {place.null_count} prompts that filtered_instructions[{name}] lacks: "
                f"materialise candidates[{name}] again"
            )
        place = place.to_numpy()
        first_row[place], n_candidates[place] = starts, counts
        if mas is not None and len(starts):
            score = pq.read_table(mas.path("data.parquet"), columns=["mas"])["mas"].to_numpy()
            top = np.fmax.reduceat(score, starts)
            best[place], spread[place] = top, top - np.fmin.reduceat(score, starts)
    return Shard(
        name=name,
        prompts=prompts,
        candidates=candidates,
        mas=mas,
        logprobs=logprobs,
        prompt_ids=ids,
        questions=_questions(table["messages"].combine_chunks()),
        sources=table["source"].combine_chunks(),
        image_uris=table["image_uri"].combine_chunks(),
        image_hashes=table["image_sha256"].combine_chunks(),
        first_row=first_row,
        n_candidates=n_candidates,
        best_mas=best,
        mas_spread=spread,
    )


def matches(artifact: Artifact | None, candidates: Artifact | None) -> bool:
    """Whether an artifact was made from these very candidates, so that its rows belong to theirs."""
    if artifact is None or candidates is None:
        return False
    used = [item for item in artifact.manifest.inputs.values() if item.asset == candidates.key.asset]
    mine = [item for item in used if item.partition == candidates.key.partition]
    return bool(mine) and all(item.data_version == candidates.data_version for item in mine)


def _runs(candidates: Artifact) -> tuple[pa.StringArray, np.ndarray, np.ndarray]:
    """Each prompt with candidates, the first of its rows and their number; a prompt's rows are adjacent."""
    path = candidates.path("data.parquet")
    with pq.ParquetFile(path, read_dictionary=["prompt_id"], pre_buffer=False) as file:
        column = file.read(columns=["prompt_id"])["prompt_id"].unify_dictionaries().combine_chunks()
    codes = column.indices.to_numpy()
    starts = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)[: len(codes)]
    owners = column.dictionary.take(pa.array(codes[starts]))
    if len(set(codes[starts].tolist())) < len(starts):
        raise ValueError(f"{path}: a prompt's candidates are not adjacent")
    return owners, starts, np.diff(np.append(starts, len(codes)))


def _questions(messages: pa.ListArray) -> pa.StringArray:
    """The text of each conversation's last turn, which is the user turn to answer; empty without any."""
    ends = messages.offsets.to_numpy()[1:]
    texts = pc.struct_field(messages.values, "text")
    some = pc.list_value_length(messages).fill_null(0).to_numpy(zero_copy_only=False) > 0
    last = texts.take(pa.array(np.where(some, ends - 1, 0))) if len(texts) else pa.nulls(len(messages), pa.string())
    return pc.fill_null(pc.if_else(pa.array(some), last, ""), "")
