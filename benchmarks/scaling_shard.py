"""A shard of generated tables as long as LLaVA's, and what each step that runs without a model takes over it."""

import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from newest_artifacts import newest

from m3po_dagster.assets.adapters import examples_of
from m3po_dagster.assets.candidates import _answers
from m3po_dagster.assets.pairs import select_shard
from m3po_dagster.assets.parts import in_parts
from m3po_dagster.assets.sampling import PART_SCHEMA
from m3po_dagster.assets.scores import answers_of, score_inside
from m3po_dagster.assets.sweep import sweep_all
from m3po_dagster.graph import STAGES
from m3po_dagster.materialise import Work
from m3po_dagster.method.generation.diversity import measure
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import (
    CANDIDATES,
    DROPPED,
    FILTERED_INSTRUCTIONS,
    LOGPROBS,
    TableSchema,
    mas_schema,
)
from m3po_dagster.study import Study, load_study

ROOT = Path(__file__).parents[1]
SAMPLES, QUESTION_TOKENS, ANSWER_TOKENS, PART_PROMPTS = 32, 14, 100, 100
VOCABULARY, ZIPF = 30_000, 1.1
MAS = mas_schema(["judge", "clip"], ["accuracy", "adherence", "relevance"])
RECIPE = "m3po"
KEY = "f" * 64
TABLES = ("filtered_instructions", "candidates", "mas_table", "logprob_table", "preference_pairs")


@cache
def words() -> pa.Array:
    """A vocabulary: the word of token n, three to eight letters, the frequent ones short."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    lengths = np.clip(3 + np.log10(np.arange(1, VOCABULARY + 1)) + rng.normal(0, 0.7, VOCABULARY), 2, 9).astype(int)
    return pa.array(["".join(rng.choice(letters, size)) for size in lengths])


def texts(rng: np.random.Generator, count: int, mean: int) -> tuple[pa.ListArray, pa.Array]:
    """`count` texts as token ids and as words, of `mean` tokens in the mean, drawn one by one as in Zipf's law.

    No two answers to a prompt share more than chance, so these compress worse than answers do.
    """
    lengths = np.clip(rng.gamma(4, mean / 4, count), 4, 512).astype(np.int32)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    weights = 1 / np.arange(1, VOCABULARY + 1) ** ZIPF
    ids = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(int(offsets[-1]))).astype(np.int32)
    ids = pa.array(np.minimum(ids, VOCABULARY - 1))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, words().take(ids)), " ")
    return pa.ListArray.from_arrays(offsets, ids), joined


def write_shard(folder: Path, prompts: int, shards: int = 1) -> None:
    """A store with the tables that stand before selection, and an unfinished draft of the candidates in parts."""
    study, store = study_of(shards), ArtifactStore(folder)
    for number, shard in enumerate(study.shards):
        rng = np.random.default_rng(number)
        ids = pa.array([f"{rng.integers(2**63):016x}{rng.integers(2**63):016x}" * 2 for _ in range(prompts)])
        _, questions = texts(rng, prompts, QUESTION_TOKENS)
        _, references = texts(rng, prompts, ANSWER_TOKENS)
        filtered = {
            "prompt_id": ids,
            "image_name": [f"{n:012d}.jpg" for n in range(prompts)],
            "image_uri": [f"{n:012d}.jpg" for n in range(prompts)],
            "image_sha256": ids,
            "width": np.full(prompts, 640, np.int32),
            "height": np.full(prompts, 480, np.int32),
            "messages": pa.array(
                [[{"role": "user", "text": text}] for text in questions.to_pylist()],
                FILTERED_INSTRUCTIONS.schema.field("messages").type,
            ),
            "reference": references,
            "source": [next(iter(study.dataset.sources))] * prompts,
            "source_id": [f"{n:012d}" for n in range(prompts)],
            "turn": np.zeros(prompts, np.int32),
        }
        commit(store, "filtered_instructions", shard, {"data": (pa.table(filtered), FILTERED_INSTRUCTIONS)})
        answers, scores = _scored(rng, ids)
        if number == 0:
            with store.open("candidates", shard, KEY) as draft:
                draft.parts({"rows": "of whole prompts, in any order; the last part that names a prompt counts"})
                stored = pa.schema([*(field.with_nullable(True) for field in PART_SCHEMA), ("asked_again", pa.bool_())])
                whole = pa.table({name: answers.get(name, pa.nulls(len(scores["mas"]))) for name in stored.names})
                for index, start in enumerate(range(0, prompts * SAMPLES, PART_PROMPTS * SAMPLES)):
                    draft.write_part(index, whole.slice(start, PART_PROMPTS * SAMPLES).cast(stored), stored)
        made = pa.table({name: answers[name] for name in CANDIDATES.schema.names})
        commit(store, "candidates", shard, {"data": (made, CANDIDATES), **_none_dropped()}, "0" * 64)
        commit(store, "mas_table", shard, {"data": (pa.table(scores).select(MAS.schema.names), MAS)})
        inside = pa.table({**answers, "numerics": ["transformers/bfloat16"] * len(made)})
        commit(store, "logprob_table", shard, {"data": (inside.select(LOGPROBS.schema.names), LOGPROBS)}, "0" * 64)
        work = work_on("preference_pairs", f"{RECIPE}|{shard}", study, store)
        built = select_shard(work)
        commit(store, "preference_pairs", f"{RECIPE}|{shard}", dict(built.tables), "0" * 64, **built.facts)


def _scored(rng: np.random.Generator, ids: pa.Array) -> tuple[dict, dict]:
    """Columns of the candidates and of their scores."""
    rows = len(ids) * SAMPLES
    owner = ids.take(pa.array(np.repeat(np.arange(len(ids)), SAMPLES)))
    k = np.tile(np.arange(SAMPLES, dtype=np.int32), len(ids))
    candidate_id = pc.binary_join_element_wise(owner, pa.array(k).cast(pa.string()), ":")
    token_ids, text = texts(rng, rows, ANSWER_TOKENS)
    n_tokens = np.diff(token_ids.offsets.to_numpy()).astype(np.int32)
    logps = -rng.gamma(0.5, 0.4, len(token_ids.values)).astype(np.float32)
    sums = np.add.reduceat(logps.astype(np.float64), token_ids.offsets.to_numpy()[:-1])
    answers = {
        "candidate_id": candidate_id,
        "prompt_id": owner,
        "k": k,
        "text": text,
        "token_ids": token_ids,
        "n_tokens": n_tokens,
        "finish_reason": pa.array(["stop", "length"]).take(pa.array((rng.random(rows) < 0.02).astype(int))),
        "multiplicity": np.ones(rows, np.int32),
        "seed": np.arange(rows, dtype=np.int64),
        "sum_logp": sums,
        "eos_logp": -rng.gamma(0.5, 0.4, rows),
        "token_logps": pa.ListArray.from_arrays(token_ids.offsets, pa.array(logps)),
    }
    figures = [name for name, kind in zip(MAS.schema.names, MAS.schema.types, strict=True) if kind == pa.float64()]
    scores = {name: np.round(rng.beta(5, 3, rows), 6) for name in figures}
    scores |= {"candidate_id": candidate_id, "prompt_id": owner, "status": ["scored"] * rows}
    _, said = texts(rng, rows, 25)
    return answers, scores | {"words": said}


def _none_dropped() -> dict[str, tuple[pa.Table, TableSchema]]:
    return {"dropped": (DROPPED.schema.empty_table(), DROPPED)}


def commit(store: ArtifactStore, asset: str, partition: str, tables: dict, key: str = KEY, **facts: object) -> Artifact:
    """Commits tables under `key`."""
    with store.open(asset, partition, key) as draft:
        cast = {name: (table.cast(schema.schema), schema) for name, (table, schema) in tables.items()}
        return draft.commit(
            cast, code_version="1", metadata={"numerics": "transformers/bfloat16", "checks": {}} | facts
        )


def study_of(shards: int) -> Study:
    """The embedded study cut into `shards`."""
    study = load_study(ROOT / "studies" / "easy_scenes.yaml")
    return study.model_copy(update={"dataset": study.dataset.model_copy(update={"shards": shards})})


def work_on(asset: str, partition: str, study: Study, store: ArtifactStore) -> Work:
    """What a step works with, its inputs as `write_shard` committed them."""
    shard = partition.rpartition("|")[2]
    inputs = {
        (name, artifact.key.partition): artifact
        for name in TABLES
        for artifact in store.list(name)
        if STAGES[asset].fan_in or artifact.key.partition.rpartition("|")[2] == shard
    }
    return Work((asset, partition), study, store, None, {}, inputs, lambda line: None)


def put_together(work: Work) -> int:
    """All that `candidates` does once everything is sampled: parts read, put in order, looked at, committed."""

    def unexpected(some: Sequence) -> None:
        raise AssertionError(f"{len(some)} prompts are in no part")

    prompts = work.one("filtered_instructions").table(columns=["prompt_id"])["prompt_id"].to_pylist()
    with work.store.open("candidates", work.partition, KEY) as draft:
        work.draft = draft
        rows = in_parts(
            work, dict.fromkeys(prompts), lambda some: unexpected(some) if some else iter(()), PART_SCHEMA, ""
        )
        sampled = rows.filter(pc.is_null(rows["failure"])).select(CANDIDATES.schema.names).cast(CANDIDATES.schema)
        measure(_answers(sampled))
        draft.commit({"data": (sampled, CANDIDATES), **_none_dropped()}, code_version="1")
    return len(prompts)


def read_for_judge(work: Work) -> int:
    """The candidates' texts and facts as a judge is handed them, prompt by prompt."""
    answers = answers_of(work, ["candidate_id", "prompt_id", "text", "sum_logp", "n_tokens", "finish_reason"])
    for _, rows in answers.values():
        [row["text"] for row in rows]
    return len(answers)


def read_for_rescoring(work: Work) -> int:
    """The candidates' token ids as a pass over them is handed them, prompt by prompt."""
    answers = answers_of(work, ["candidate_id", "prompt_id", "token_ids", "n_tokens"])
    for _, rows in answers.values():
        [row["token_ids"] for row in rows]
    return len(answers)


def all_at_once(work: Work) -> int:
    """The plain way of the above: every row of the shard as Python values."""
    table = work.one("candidates").table(columns=["candidate_id", "prompt_id", "token_ids", "n_tokens"])
    return len(table.to_pylist()) // SAMPLES


def note_logprobs(work: Work) -> int:
    """`logprob_table` of log-probs noted while sampling."""
    table, schema = score_inside(work, None).tables["data"]
    commit(work.store, "logprob_table", work.partition, {"data": (table, schema)})
    return len(table) // SAMPLES


def select(work: Work) -> int:
    """`preference_pairs` of a recipe and shard."""
    pairs, _ = (built := select_shard(work)).tables["data"]
    commit(work.store, "preference_pairs", work.partition, dict(built.tables))
    return len(pairs)


def sweep(work: Work) -> int:
    """`selection_sweep` over all shards."""
    sweep_all(work)
    return sum(artifact.manifest.tables["data"].rows for artifact in work.all("candidates").values()) // SAMPLES


def verify(work: Work) -> int:
    """Every table of the shard read and compared with its hashes."""
    for artifact in work.inputs.values():
        artifact.table()
    return work.one("filtered_instructions").manifest.tables["data"].rows


def examples(work: Work) -> int:
    """What training holds of the pairs of all shards."""
    return len(examples_of(work))


STEPS: dict[str, tuple[str, str, Callable[[Work], int]]] = {
    "candidates: parts put together": ("candidates", "{shard}", put_together),
    "mas_table: answers handed out": ("mas_table", "{shard}", read_for_judge),
    "logprob_table: noted": ("logprob_table", "{shard}", note_logprobs),
    "logprob_table: tokens handed out": ("logprob_table", "{shard}", read_for_rescoring),
    "the same, all at once": ("logprob_table", "{shard}", all_at_once),
    "preference_pairs": ("preference_pairs", RECIPE + "|{shard}", select),
    "selection_sweep": ("selection_sweep", "", sweep),
    "lora_adapter: examples": ("lora_adapter", RECIPE, examples),
    "every table verified": ("candidates", "{shard}", verify),
}
"""Asset, partition and what is done."""


def measured(folder: Path, shards: int, step: str) -> dict:
    """Seconds and the peak of memory above what the process held before, of one step."""
    import m3po_dagster.method.selection
    import m3po_dagster.method.selection_sweep  # noqa: F401

    asset, partition, run = STEPS[step]
    study = study_of(shards)
    work = work_on(asset, partition.format(shard=study.shards[0]), study, ArtifactStore(folder))
    before, wall, cpu = memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    done = run(work)
    return {
        "prompts": done,
        "s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": memory_mb("VmHWM") - before,
    }


def memory_mb(kind: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it has held, MB."""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


def bytes_a_prompt(folder: Path) -> dict[str, dict[str, float]]:
    """Of each asset of a store: bytes a prompt on disk, of the manifests too, and rows a prompt."""
    filtered = newest(folder, "filtered_instructions")
    prompts = {key: artifact.manifest.tables["data"].rows for key, artifact in filtered.items()}
    found = {}
    for asset in TABLES:
        # Of pairs those of one recipe.
        made = {
            key: artifact
            for key, artifact in newest(folder, asset).items()
            if "|" not in key or key.startswith(f"{RECIPE}|")
        }
        of = sum(prompts[key.rpartition("|")[2]] for key in made)
        found[asset] = {
            "bytes": sum(artifact.manifest.bytes for artifact in made.values()) / of,
            "rows": sum(artifact.manifest.tables["data"].rows for artifact in made.values()) / of,
            "manifest_kb": np.mean([(one.folder / "manifest.json").stat().st_size for one in made.values()]) / 1e3,
        }
    return found
