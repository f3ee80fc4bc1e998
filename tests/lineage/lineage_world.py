"""Studies written into a store without any model: real tables, fingerprints and reuse as the graph has them.

What a recipe prefers is a hash of prompt, judge and alpha, so that a changed judge or alpha changes some pairs.
"""

import hashlib
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from m3po_dagster.datasets.row import ROWS
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import (
    ADAPTERS,
    CANDIDATES,
    DROPPED,
    FILTERED_INSTRUCTIONS,
    IDENTITY,
    LOGPROBS,
    MARGINS,
    PAIRS,
    SOURCE_SHARDS,
    TRAINING_LOG,
    TRAJECTORY,
    TableSchema,
    mas_schema,
)

MAS = mas_schema([], [])
CANDIDATES_A_PROMPT = 4
BATCH = 4


def digest(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


@dataclass(frozen=True)
class Wanted:
    """A study in a few words.

    `recipes` holds {name: alpha}, `same` {name: the earlier recipe whose adapters it shares}. With `judged_apart` the
    judge gives other scores in these shards alone, and those of the judge "strict" elsewhere. Of each adapter's pairs
    the first so many are `unlearned`, the very first the least.
    """

    dataset: str = "scenes"
    prompts: int = 12
    shards: int = 2
    model: str = "one"
    judge: str = "strict"
    answers: str = "first"
    recipes: dict[str, float] = field(default_factory=lambda: {"m3po": 0.5})
    same: dict[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    epochs: int = 1
    beta: float = 0.1
    judged_apart: tuple[str, ...] | None = None
    unlearned: int = 0
    pairs_a_prompt: int = 1
    kind: str = "dpo"
    layout: str = "trl"

    @property
    def training(self) -> dict[str, object]:
        """As it is dumped: without a layout that is the default."""
        layout = {} if self.layout == "trl" else {"layout": self.layout}
        return {"kind": self.kind, "beta": self.beta, "epochs": self.epochs} | layout

    def but(self, **changes: object) -> "Wanted":
        return replace(self, **changes)

    def judged(self, shard: str) -> str:
        """What the scores of a shard hang on: the judge, unless it changed nothing there."""
        return self.judge if self.judged_apart is None or shard in self.judged_apart else "strict"


class World:
    """A store, and the artifacts written to it by (asset, partition) of the study last made."""

    def __init__(self, root) -> None:
        self.store = ArtifactStore(root)

    def make(self, wanted: Wanted) -> dict[tuple[str, str], Artifact]:
        """Writes what of the study isn't there yet; gives every part of it."""
        made: dict[tuple[str, str], Artifact] = {}

        def put(asset, partition, tables, settings, *inputs, weights=""):
            artifact = self._put(asset, partition, tables, settings, [made[part] for part in inputs], weights)
            made[asset, partition] = artifact
            return artifact

        def identity(asset, partition, settings):
            rows = [{"fact": key, "value": repr(value)} for key, value in settings.items()]
            put(asset, partition, {"data": table(rows, IDENTITY)}, settings)

        records = [
            {
                "shard": f"s{n // 2 % wanted.shards}",
                "record": n,
                "source_id": f"{wanted.dataset}_{n}",
                "image_uri": f"{n // 2}.png",
                "image_sha256": digest("image", wanted.dataset, n // 2),
            }
            for n in range(wanted.prompts + 1)
        ]
        source = {"settings": {"path": "data.json"}, "files": {"0": digest(wanted.dataset, wanted.prompts)}}
        dataset = {"settings": {"shards": wanted.shards}, "sources": {wanted.dataset: source}}
        self._dataset(wanted, records, dataset, made)
        identity("base_model", "", {"files": {"model.safetensors": digest(wanted.model)}})
        # What a served judge answers is no setting of the study: content alone tells.
        probed = table([{"fact": "answers", "value": wanted.answers}], IDENTITY)
        answers = self._commit("judge_probe", "", digest("probe", wanted.answers), {"data": probed}, {}, [], "")
        made["judge_probe", ""] = answers
        judge = {"scorer": {"settings": {"strictness": wanted.judge}}}
        rows = [{"fact": "scorer", "value": wanted.judge}, {"fact": "answers", "value": answers.data_version}]
        put("judge_identity", "", {"data": table(rows, IDENTITY)}, judge, ("judge_probe", ""))
        shards = [f"s{n}" for n in range(wanted.shards)]
        for name, alpha in wanted.recipes.items():
            training = wanted.training
            selection = {"rule": "m3p", "alpha": alpha}
            identity("recipe_config", name, {"selection": selection, "training": training, "seeds": list(wanted.seeds)})
        for shard in shards:
            self._shard(wanted, shard, [row for row in records if row["shard"] == shard], put)
        for name, alpha in wanted.recipes.items():
            for shard in shards:
                prompts = made["filtered_instructions", shard].table()["prompt_id"].to_pylist()
                pairs, dropped = selected(prompts, wanted, shard, alpha)
                uses = [(asset, shard) for asset in ("candidates", "mas_table", "logprob_table")]
                tables = {"data": table(pairs, PAIRS), "dropped": table(dropped, DROPPED)}
                put("preference_pairs", f"{name}|{shard}", tables, {}, *uses, ("recipe_config", name))
            self._train(wanted, name, shards, made, put)
        return made

    def _dataset(self, wanted, records, settings, made) -> None:
        shards = [f"s{n}" for n in range(wanted.shards)]
        known = dict.fromkeys(ROWS.names)
        rows = [{**known, **row, "source": wanted.dataset, "record_sha256": digest(row)} for row in records]
        found = [
            {"shard": shard, "records": sum(row["shard"] == shard for row in records)}
            | dict.fromkeys(("refused", "text_only", "image_problems", "images"), 0)
            for shard in shards
        ]
        key = fingerprint("source_dataset", "", "1", settings, {})
        with self.store.open("source_dataset", "", key) as draft:
            if not draft.committed:
                for shard in shards:
                    mine = pa.Table.from_pylist([row for row in rows if row["shard"] == shard], ROWS)
                    pq.write_table(mine, draft.folder("records") / f"{shard}.parquet")
                draft.commit({"data": table(found, SOURCE_SHARDS)}, code_version="1", settings=settings)
        made["source_dataset", ""] = self.store.find("source_dataset", "", key)

    def _shard(self, wanted, shard, records, put) -> None:
        kept, dropped = records, []
        if records[-1]["record"] == wanted.prompts:
            kept = records[:-1]
            dropped = [{"item_id": f"{wanted.dataset}#{wanted.prompts}", "reason": "exact duplicate", "detail": None}]
        prompts = [
            {
                "prompt_id": digest("prompt", wanted.dataset, row["record"])[:32],
                **{name: row[name] for name in ("image_uri", "image_sha256", "source_id")},
                "width": 64,
                "height": 48,
                "messages": [{"role": "user", "text": f"Question {row['record']}?"}],
                "reference": None,
                "source": wanted.dataset,
                "turn": 0,
                "image_name": None,
            }
            for row in kept
        ]
        tables = {"data": table(prompts, FILTERED_INSTRUCTIONS), "dropped": table(dropped, DROPPED)}
        put("filtered_instructions", shard, tables, {"turns": "first"}, ("source_dataset", ""))
        ids = [(row["prompt_id"], k) for row in prompts for k in range(CANDIDATES_A_PROMPT)]
        candidates = [
            {
                "candidate_id": f"{prompt}:{k}",
                "prompt_id": prompt,
                "k": k,
                "text": f"Answer {k} of model {wanted.model}.",
                "token_ids": [k],
                "n_tokens": 1,
                "finish_reason": "stop",
                "multiplicity": 1,
                "seed": 0,
            }
            for prompt, k in ids
        ]
        instructions = ("filtered_instructions", shard)
        put("candidates", shard, {"data": table(candidates, CANDIDATES)}, {"n": 4}, instructions, ("base_model", ""))
        scores = [
            {
                "candidate_id": f"{prompt}:{k}",
                "prompt_id": prompt,
                "mas": score(prompt, k, wanted.judged(shard)),
                "status": "scored",
            }
            for prompt, k in ids
        ]
        used = (("candidates", shard), instructions)
        put("mas_table", shard, {"data": table(scores, MAS)}, {}, *used, ("judge_identity", ""))
        logps = [
            {"candidate_id": f"{p}:{k}", "prompt_id": p, "sum_logp": -1.0 - k, "n_tokens": 1, "numerics": "float32"}
            for p, k in ids
        ]
        put("logprob_table", shard, {"data": table(logps, LOGPROBS)}, {}, *used, ("base_model", ""))

    def _train(self, wanted, name, shards, made, put) -> None:
        used = [("preference_pairs", f"{name}|{shard}") for shard in shards]
        used += [(asset, shard) for asset in ("candidates", "filtered_instructions") for shard in shards]
        used.append(("base_model", ""))
        ids = [row for part in used[: len(shards)] for row in made[part].table()["pair_id"].to_pylist()]
        rows = []
        for seed in wanted.seeds:
            training = wanted.training
            settings = {"seed": seed, "training": training}
            order = [i for epoch in range(wanted.epochs) for i in sorted(ids, key=lambda i: digest(i, seed, epoch))]
            steps = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
            log = [
                {
                    "step": number,
                    "pairs_seen": min(number * BATCH, len(order)),
                    "pair_ids": step,
                    **dict.fromkeys(("loss", "learning_rate", "grad_norm"), 0.5),
                }
                for number, step in enumerate(steps, 1)
            ]
            after = [
                {
                    "pair_id": i,
                    "reward_margin": len(i) / 100 + seed if number >= wanted.unlearned else number - wanted.unlearned,
                    "reward_margin_before": 0.0,
                    "loss_before": 0.7,
                    "loss": 0.8 if number < wanted.unlearned else 0.1,
                    "chosen_logp_before": -1.0,
                    "chosen_logp_after": -0.5,
                    "rejected_logp_before": -2.0,
                    "rejected_logp_after": -3.0,
                }
                for number, i in enumerate(ids if wanted.kind != "rlhf" else ())
            ]
            seen = [
                {"pair_id": i, "step": row["step"], "loss": 0.7, "reward_margin": 0.0, "chosen_logp": -1.0}
                for row in log
                for i in dict.fromkeys(row["pair_ids"])
            ]
            tables = {
                "training_log": table(log, TRAINING_LOG),
                "margins": table(after, MARGINS),
                "trajectory": table(seen, TRAJECTORY),
            }
            part = ("adapter", f"{name}|{seed}")
            if name in wanted.same:
                adapter = made[part] = made["adapter", f"{wanted.same[name]}|{seed}"]
            else:
                adapter = put(*part, tables, settings, *used, weights=digest(order, wanted.beta))
            rows.append(
                {
                    "adapter_id": adapter.fingerprint,
                    "seed": seed,
                    "fingerprint": adapter.fingerprint,
                    "data_version": adapter.data_version,
                }
            )
        stood_on = [("adapter", f"{name}|{seed}") for seed in wanted.seeds]
        tables = {"data": table(rows, ADAPTERS)}
        key = fingerprint("lora_adapter", name, "1", {}, versions([made[p] for p in (*used, ("recipe_config", name))]))
        parts = [made[part] for part in (*used, ("recipe_config", name))]
        seeds = {f"adapter[{place}]": made[asset, place] for asset, place in stood_on}
        made["lora_adapter", name] = self._commit("lora_adapter", name, key, tables, {}, parts, "", seeds)

    def _put(self, asset, partition, tables, settings, inputs, weights) -> Artifact:
        # A training's fingerprint has no recipe_config, and its own settings instead: as the graph does it.
        key = fingerprint(asset, partition, "1", settings, versions(inputs))
        return self._commit(asset, partition, key, tables, settings, inputs, weights)

    def _commit(self, asset, partition, key, tables, settings, inputs, weights, named=None) -> Artifact:
        # A seed's adapter is named by the recipe that stands on it, wherever it lies.
        by_name = {f"{item.key.asset}[{item.key.partition}]": item for item in inputs} | (named or {})
        refs = {name: {**item.key._asdict(), "data_version": item.data_version} for name, item in by_name.items()}
        with self.store.open(asset, partition, key) as draft:
            if draft.committed:
                return draft.committed
            if weights:
                (draft.folder() / "weights").write_text(weights)
            return draft.commit(tables, code_version="1", settings=settings, inputs=refs)


def versions(inputs: list[Artifact]) -> dict[str, str]:
    return {f"{item.key.asset}[{item.key.partition}]": item.data_version for item in inputs}


def table(rows: list[dict], schema: TableSchema) -> tuple[pa.Table, TableSchema]:
    return pa.Table.from_pylist(rows, schema=schema.schema), schema


def score(prompt: str, k: int, judge: str) -> float:
    return int(digest(prompt, k, judge)[:6], 16) / 16**6


def selected(prompts: list[str], wanted: Wanted, shard: str, alpha: float) -> tuple[list[dict], list[dict]]:
    """Pairs of all prompts but those that the judge's word drops, one in four; alpha moves some rejected answers."""
    pairs, dropped = [], []
    for prompt in prompts:
        if int(digest(prompt, wanted.judged(shard), "drop")[:4], 16) % 4 == 0:
            dropped.append({"item_id": prompt, "reason": "one_distinct_candidate", "detail": None})
            continue
        order = sorted(range(CANDIDATES_A_PROMPT), key=lambda k: score(prompt, k, wanted.judged(shard)))
        moved = int(digest(prompt, alpha)[:4], 16) % 3 == 0
        losers = order[1:] if moved else order
        for rejected in losers[: wanted.pairs_a_prompt]:
            pairs.append(pair(prompt, order[-1], rejected, wanted.judged(shard)))
    return pairs, dropped


def pair(prompt: str, chosen: int, rejected: int, judge: str) -> dict:
    gap = score(prompt, chosen, judge) - score(prompt, rejected, judge)
    return {
        "pair_id": digest(f"{prompt}:{chosen}", f"{prompt}:{rejected}"),
        "prompt_id": prompt,
        "chosen_id": f"{prompt}:{chosen}",
        "rejected_id": f"{prompt}:{rejected}",
        "chosen_mas": score(prompt, chosen, judge),
        "m3p_score": gap,
        "mas_gap": gap,
        "logp_gap": float(rejected - chosen),
        "ref_chosen_logp": -1.0 - chosen,
        "ref_rejected_logp": -1.0 - rejected,
    }
