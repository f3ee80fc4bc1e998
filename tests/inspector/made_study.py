"""Writes a study's artifacts and tells the event log, as the graph's steps do, from texts and scores a test chooses."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pyarrow as pa
import yaml
from PIL import Image

from m3po_dagster.current import DATA_VERSION_TAG, FINGERPRINT_METADATA
from m3po_dagster.graph import Head, Part, part_fingerprint
from m3po_dagster.identity import Identities, recipe_identity
from m3po_dagster.method.selection import select_pairs
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import (
    ANSWERS,
    CANDIDATES,
    DROPPED,
    FILTERED_INSTRUCTIONS,
    IDENTITY,
    LOGPROBS,
    PAIRS,
    SCORES,
    TableSchema,
    mas_schema,
)
from m3po_dagster.study import load_study

PORT = 3001
WEIGHTS = Path(__file__).parents[2] / "m3po_dagster" / "world" / "weights"
MAS = mas_schema(["judge"], ["accuracy"])
OUTSIDE = ("source_dataset", "base_model", "sampling_scorer", "judge_probe", "judge_identity", "benchmark_data")
MADE = {"format": "llava_instruct", "path": "./none.json", "image_root": "./images"}
RECIPES = {
    "base": {},
    "sft": {"selection": {"rule": "best_only"}, "training": {"kind": "sft"}},
    "plain": {"selection": {"rule": "m3p", "alpha": 0}, "training": {"kind": "dpo"}},
    "m3po": {"selection": {"rule": "m3p", "alpha": 0.5, "delta": 0.1}, "training": {"kind": "dpo"}},
}


@dataclass
class Answer:
    """One candidate."""

    text: str
    mas: float | None = 0.5
    sum_logp: float = -1.0
    n_tokens: int = 4
    finish_reason: str = "stop"
    words: str | None = None
    token_ids: list[int] | None = None
    token_logps: list | None = None


@dataclass
class Asked:
    """One prompt with its candidates."""

    prompt_id: str
    question: str
    answers: list[Answer] = field(default_factory=list)
    image: str = "red.png"


def some_prompts(count: int = 6, start: int = 0) -> list[Asked]:
    """Prompts of five answers, each worse than the one before it; of every second prompt also less likely.

    Every third prompt has one answer alone, hence no pair.
    """
    prompts = []
    for number in range(start, start + count):
        answers = []
        for k in range(1 if number % 3 == 2 else 5):
            n_tokens, logp = 4 + k, -0.25 - (0.5 * k if number % 2 == 0 else 0.0)
            answers.append(Answer(f"answer {k} to {number}", 0.9 - 0.13 * k - 0.01 * number, logp * n_tokens, n_tokens))
        prompts.append(Asked(f"prompt{number:03d}", f"What is in picture {number}?", answers))
    return prompts


class MadeStudy:
    """A study file, a store and an event log in one folder."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance = folder, instance
        self.heads: dict[Part, Head] = {}
        self.token_logps = True
        self.path = folder / "study.yaml"
        self.store = ArtifactStore(folder / "store")
        self.images = folder / "images"
        self.images.mkdir()
        Image.new("RGB", (40, 30), "red").save(self.images / "red.png")
        self.settings = {
            "name": "made",
            "dataset": {"shards": 2, "sources": {"made": MADE}},
            "model": {"path": str(WEIGHTS / "llava"), "device": "cpu"},
            "judge": {"scorers": [{"kind": "clip", "name": "clip", "model": str(WEIGHTS / "judge")}]},
            "recipes": RECIPES,
            "benchmarks": {"pope": {"kind": "pope", "labels": {"random": "./none.json"}, "image_root": "./images"}},
        }
        self.write()
        for asset in OUTSIDE:
            self.report(asset, "", "0" * 64, f"the {asset} of the tests")

    def write(self) -> None:
        """Writes the study file."""
        self.path.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def commit(
        self,
        asset: str,
        partition: str,
        tables: dict[str, tuple[pa.Table, TableSchema]],
        inputs: Sequence[Artifact] = (),
        settings: object = None,
    ) -> Artifact:
        """Commits an artifact and makes it current, under the fingerprint that the graph gives it.

        Other content under a fingerprint that is there replaces it, as after `m3po gc` or a damaged file.
        """
        made_from = {
            f"{item.key.asset}[{item.key.partition}]": {
                "asset": item.key.asset,
                "partition": item.key.partition,
                "fingerprint": item.fingerprint,
                "data_version": item.data_version,
            }
            for item in inputs
        }
        key = self.fingerprint(asset, partition)
        known = self.store.find(asset, partition, key)
        if known is not None and any(known.table(name) != table for name, (table, _) in tables.items()):
            shutil.rmtree(known.folder)
        with self.store.open(asset, partition, key) as draft:
            artifact = draft.committed or draft.commit(
                tables, code_version="1", settings=settings, inputs=made_from, metadata={"checks": {}}
            )
        self.report(asset, partition, key, artifact.data_version)
        return artifact

    def fingerprint(self, asset: str, partition: str) -> str:
        """What the graph wants the part to carry; of a part whose inputs were not made, one of no meaning."""
        identities = Identities(lambda path: "0" * 64)
        wanted = part_fingerprint((asset, partition), load_study(self.path), identities, self.heads)
        return wanted or fingerprint(asset, partition, "1", {}, {})

    def report(self, asset: str, partition: str, key: str, data_version: str) -> None:
        """Tells the event log what is current."""
        self.heads[asset, partition] = Head(key, data_version)
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset,
                partition=partition or None,
                metadata={FINGERPRINT_METADATA: key},
                tags={DATA_VERSION_TAG: data_version},
            )
        )

    def add_recipe_config(self, recipe: str) -> Artifact:
        """recipe_config of a recipe as the study file has it."""
        settings = recipe_identity(load_study(self.path).recipes[recipe])
        rows = [{"fact": name, "value": json.dumps(value)} for name, value in settings.items()]
        table = pa.Table.from_pylist(rows, schema=IDENTITY.schema)
        return self.commit("recipe_config", recipe, {"data": (table, IDENTITY)}, settings=settings)

    def add_prompts(self, shard: str, prompts: list[Asked]) -> Artifact:
        """filtered_instructions of a shard."""
        rows = [
            {
                "prompt_id": item.prompt_id,
                "image_uri": item.image,
                "image_sha256": "0" * 64,
                "width": 40,
                "height": 30,
                "messages": [{"role": "user", "text": item.question}],
                "reference": None,
                "source": "made",
                "source_id": item.prompt_id,
                "turn": 0,
                "image_name": None,
            }
            for item in prompts
        ]
        table = pa.Table.from_pylist(rows, schema=FILTERED_INSTRUCTIONS.schema)
        tables = {"data": (table, FILTERED_INSTRUCTIONS), "dropped": (DROPPED.schema.empty_table(), DROPPED)}
        return self.commit("filtered_instructions", shard, tables, settings=[item.prompt_id for item in prompts])

    def _token_logps(self, answer: Answer) -> list | None:
        if not self.token_logps:
            return None
        return answer.token_logps or [answer.sum_logp / answer.n_tokens] * answer.n_tokens

    def add_candidates(self, shard: str, prompts: list[Asked], filtered: Artifact) -> Artifact:
        """candidates of a shard."""
        rows = [
            {
                "candidate_id": f"{item.prompt_id}:{k}",
                "prompt_id": item.prompt_id,
                "k": k,
                "text": answer.text,
                "token_ids": answer.token_ids or [5] * answer.n_tokens,
                "n_tokens": answer.n_tokens,
                "finish_reason": answer.finish_reason,
                "multiplicity": 1,
                "seed": 0,
                "token_logps": self._token_logps(answer),
                "sum_logp": answer.sum_logp,
                "eos_logp": None,
            }
            for item in prompts
            for k, answer in enumerate(item.answers)
        ]
        table = pa.Table.from_pylist(rows, schema=CANDIDATES.schema)
        tables = {"data": (table, CANDIDATES), "dropped": (DROPPED.schema.empty_table(), DROPPED)}
        return self.commit("candidates", shard, tables, [filtered], [row["text"] for row in rows])

    def add_mas(self, shard: str, prompts: list[Asked], candidates: Artifact) -> Artifact:
        """mas_table of a shard."""
        rows = [
            {
                "candidate_id": f"{item.prompt_id}:{k}",
                "prompt_id": item.prompt_id,
                "mas": answer.mas,
                "status": "scored" if answer.mas is not None else "refused",
                "words": answer.words,
                "judge": answer.mas,
                "accuracy": answer.mas,
            }
            for item in prompts
            for k, answer in enumerate(item.answers)
        ]
        table = pa.Table.from_pylist(rows, schema=MAS.schema)
        return self.commit("mas_table", shard, {"data": (table, MAS)}, [candidates], [row["mas"] for row in rows])

    def add_logprobs(self, shard: str, candidates: Artifact) -> Artifact:
        """logprob_table of a shard, as recorded."""
        table = candidates.table(columns=[name for name in LOGPROBS.schema.names if name != "numerics"])
        table = table.append_column("numerics", pa.array(["made"] * len(table), pa.string()))
        table = table.select(LOGPROBS.schema.names).cast(LOGPROBS.schema)
        return self.commit("logprob_table", shard, {"data": (table, LOGPROBS)}, [candidates])

    def add_pairs(self, recipe: str, shard: str, candidates: Artifact, mas: Artifact, logprobs: Artifact) -> Artifact:
        """preference_pairs of a recipe and shard, chosen by the recipe's rule."""
        selection = load_study(self.path).recipes[recipe].selection
        table = candidates.table(columns=["candidate_id", "prompt_id", "k", "text", "finish_reason"])
        inside = logprobs.table(columns=["sum_logp", "n_tokens"])
        for name, source in (("mas", mas.table()), ("sum_logp", inside), ("n_tokens", inside)):
            table = table.append_column(name, source[name])
        found = select_pairs(table, selection)
        dropped = found.dropped.rename_columns(DROPPED.schema.names).cast(DROPPED.schema)
        tables = {"data": (found.pairs.cast(PAIRS.schema), PAIRS), "dropped": (dropped, DROPPED)}
        inputs = [candidates, mas, logprobs, self.add_recipe_config(recipe)]
        return self.commit("preference_pairs", f"{recipe}|{shard}", tables, inputs)

    def add_shard(self, shard: str, prompts: list[Asked], recipes: Sequence[str] = ("sft", "plain", "m3po")) -> None:
        """Everything of a shard up to the pairs."""
        filtered = self.add_prompts(shard, prompts)
        candidates = self.add_candidates(shard, prompts, filtered)
        mas, logprobs = self.add_mas(shard, prompts, candidates), self.add_logprobs(shard, candidates)
        for recipe in recipes:
            self.add_pairs(recipe, shard, candidates, mas, logprobs)

    def add_answers(self, recipe: str, answers: dict[int, list[str]], questions: Sequence[dict]) -> Artifact:
        """benchmark_scores of a recipe: answers by seed, one a question."""
        rows = [
            {**question, "seed": seed, "benchmark": "pope", "answer": text, "n_tokens": 3}
            for seed, texts in answers.items()
            for question, text in zip(questions, texts, strict=True)
        ]
        figures = {
            "benchmark": "pope",
            "rule": "official",
            "metric": "accuracy",
            "value": 50.0,
            "n": 1,
            "ci_low": None,
            "ci_high": None,
        }
        scores = [{"recipe": recipe, "seed": seed, **figures} for seed in answers]
        tables = {
            "data": (pa.Table.from_pylist(scores, schema=SCORES.schema), SCORES),
            "answers": (pa.Table.from_pylist(rows, schema=ANSWERS.schema), ANSWERS),
        }
        self.report("lora_adapter", recipe, self.fingerprint("lora_adapter", recipe), "an adapter of the tests")
        return self.commit("benchmark_scores", recipe, tables, settings=rows)
