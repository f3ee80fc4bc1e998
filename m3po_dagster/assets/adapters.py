"""lora_adapter: trained on a recipe's pairs or answers, an adapter a seed (section 3.6).

Every seed's adapter is an object of its own in the store, committed when its training ends: a killed run loses at most
the seed it was training, and a seed added to a recipe leaves the others as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.display import preview
from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.learned import from_shards, learned
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pairs import NUMERICS
from m3po_dagster.assets.pictures import Lines, curves
from m3po_dagster.assets.sharing import BASE_ADAPTER, place_of, trained_already, trained_as, training_fingerprint
from m3po_dagster.assets.training_checks import health_picture, health_table, training_checks
from m3po_dagster.device_use import DeviceUse
from m3po_dagster.graph import STAGES, label
from m3po_dagster.inspector.links import prompts_url
from m3po_dagster.lineage.manifests import TRAINING_SECONDS, Manifests
from m3po_dagster.lineage.profile import trained_on_rows
from m3po_dagster.materialise import Built, Work, materialise, reference
from m3po_dagster.method.generation.numerics import of_model, only_one
from m3po_dagster.method.optimization.checkpoints import WHOLE
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import ADAPTERS, MARGINS, TRAINING_LOG, TRAJECTORY
from m3po_dagster.study import Study

CURVES = ("loss", "reward_margin", "reward_accuracy", "token_accuracy", "reward", "kl", "answer_tokens")
"""Columns of the training log that are drawn; every kind of training fills its own."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The adapters, a partition a recipe."""

    @stage_asset(
        "lora_adapter", study, ADAPTERS, group_name="training", kinds={"pytorch", "huggingface"}, section="3.6"
    )
    def lora_adapter(
        context: dg.AssetExecutionContext,
        study: StudyResource,
        store: StoreResource,
        trainer: dg.ResourceParam[TrainerResource],
    ) -> Iterator[dg.MaterializeResult]:
        """LoRA adapters trained by DPO (section 3.6, equation 4), SFT or simulated RLHF. A partition a recipe.

        In: the recipe's pairs of all shards with their prompts and sampled tokens, the base model, the recipe. Out: an
        adapter a training seed with its log and the reward margin of every pair, where it trained on pairs. The recipe
        base trains nothing.
        """
        yield from materialise(context, study, store, lambda work: train_recipe(work, trainer), describe)

    return [lora_adapter]


def train_recipe(work: Work, trainer: TrainerResource) -> Built:
    """Trains what is not in the store yet; gives a row a seed."""
    recipe = work.study.recipes[work.partition]
    # Read, and scored again where need be, once for all seeds; not at all when every adapter is in the store.
    examples = cache(lambda: examples_with_reference(work, trainer))
    trained = {seed: train_seed(work, trainer, seed, examples) for seed in recipe.seeds} if recipe.trains else {}
    rows = [
        {
            "adapter_id": artifact.fingerprint,
            "seed": seed,
            "fingerprint": artifact.fingerprint,
            "data_version": artifact.data_version,
        }
        for seed, artifact in trained.items()
    ] or [{"adapter_id": BASE_ADAPTER, "seed": 0, "fingerprint": None, "data_version": BASE_ADAPTER}]
    return Built(
        {"data": (pa.Table.from_pylist(rows, schema=ADAPTERS.schema), ADAPTERS)},
        facts={"adapters": {str(seed): reference(artifact) for seed, artifact in trained.items()}},
        checks=training_checks({seed: artifact.manifest.metadata for seed, artifact in trained.items()}),
        made_with={f"adapter[{work.partition}|{seed}]": reference(artifact) for seed, artifact in trained.items()},
    )


def train_seed(
    work: Work,
    trainer: TrainerResource,
    seed: int,
    examples: Callable[[], tuple[list[PreferenceExample], Mapping[str, object]]],
) -> Artifact:
    """The adapter of one seed, from the store or trained now."""
    training = work.study.recipes[work.partition].training
    inputs = {name: item for name, item in work.provenance().items() if not name.startswith("recipe_config")}
    code_version = STAGES["lora_adapter"].code_version
    part = place_of(work, seed)
    key = training_fingerprint(inputs, {"training": training.identity(), "seed": seed}, code_version)
    found = trained_already(work.store, part, key)
    if found is not None:
        work.log(f"seed {seed}: reused adapter[{found.manifest.partition}] {key[:16]}")
        return found
    with work.open(*part, key) as draft:
        if draft.committed:
            return draft.committed
        use = DeviceUse()
        out, (pairs, reference_facts) = draft.folder("files"), examples()
        with work.progress(f"training seed {seed}", "step") as advance:
            result = trainer.train(work.study, pairs, training, seed, out, draft.scratch(WHOLE), advance)
        if result.resumed_from:
            work.log(f"seed {seed}: went on from the checkpoint of step {result.resumed_from}")
        log = pa.Table.from_pylist(result.log, schema=TRAINING_LOG.schema)
        margins = pa.Table.from_pylist(result.margins, schema=MARGINS.schema)
        trajectory = pa.Table.from_pylist(result.trajectory, schema=TRAJECTORY.schema)
        health = result.health
        gained = [row["reward_margin"] for row in result.margins if row["reward_margin"] is not None]
        return draft.commit(
            tables={
                "training_log": (log, TRAINING_LOG),
                "margins": (margins, MARGINS),
                "trajectory": (trajectory, TRAJECTORY),
            },
            # As it was trained, which may be more than what it is known by.
            settings={"training": training.model_dump(mode="json"), "seed": seed},
            inputs=inputs,
            code_version=code_version,
            metadata={
                "finite": finite(out) and all(np.isfinite([*(row["loss"] for row in result.log), *health.values()])),
                "health": {name: value for name, value in health.items() if np.isfinite(value)},
                "reward accuracy": float(np.mean([margin > 0 for margin in gained])) if gained else None,
                TRAINING_SECONDS: result.seconds,
                "examples": result.n_examples,
                "trainable parameters": result.n_trainable,
                **use.facts(),
                **result.used,
                "processes": work.study.trainer.processes,
                "resumed from step": result.resumed_from,
                **{name.replace("_", " "): number for name, number in result.counts.items()},
                **result.facts,
                **reference_facts,
                "checks": {},
            },
        )


def examples_with_reference(
    work: Work, trainer: TrainerResource
) -> tuple[list[PreferenceExample], Mapping[str, object]]:
    """The recipe's examples, their reference log-probs of the trainer's numerics, and what the manifest says of it.

    The stored log-probs are the reference where their numerics are the trainer's, and where nothing is compared with
    them: SFT only reports them, simulated RLHF reads the base model itself. Raises MixedNumerics when the shards' pairs
    were selected by log-probs of different numerics.
    """
    pairs = work.all("preference_pairs").values()
    stored = only_one((artifact.manifest.metadata[NUMERICS] for artifact in pairs), label(work.part))
    examples = examples_of(work)
    training = work.study.recipes[work.partition].training
    if stored is None or training.kind != "dpo":
        return examples, {"reference": "stored", "reference numerics": stored, "reference forwards": 0}
    model = training.model_of(work.study.model)
    own = of_model(model)
    if stored == own:
        return examples, {"reference": "stored", "reference numerics": own, "reference forwards": 0}
    work.log(f"the stored log-probs are {stored}, the trainer's {own}: {len(examples)} pairs are scored again")
    with work.progress("scoring the reference", "pair") as advance:
        examples, counts = trainer.rescored(model, examples, advance)
    forwards = counts.prefill_forwards + counts.scoring_forwards
    return examples, {
        "reference": "rescored",
        "reference numerics": own,
        "selection numerics": stored,
        "reference forwards": forwards,
    }


def finite(folder: Path) -> bool:
    """Whether every weight of the adapter in `folder` is a finite number."""
    import torch
    from safetensors.torch import load_file

    # On quantised weights TRL keeps the adapter in bfloat16, which numpy doesn't know.
    weights = load_file(folder / "adapter_model.safetensors")
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def examples_of(work: Work) -> list[PreferenceExample]:
    """The recipe's pairs over all shards, with the sampled token ids of both answers and the prompt."""
    examples = []
    for key, artifact in work.all("preference_pairs").items():
        shard = key.split("|")[1]
        prompts = work.inputs["filtered_instructions", shard].table()
        known = {prompt.prompt_id: prompt for prompt in prompts_of(prompts, work.study)}
        pairs = artifact.table()
        candidates = work.inputs["candidates", shard].table(columns=["candidate_id", "token_ids"])
        # Two answers of a prompt's N are trained on: the others' tokens as Python numbers would fill the memory.
        trained_on = pa.chunked_array([*pairs["chosen_id"].chunks, *pairs["rejected_id"].chunks], pa.string())
        candidates = candidates.filter(pc.is_in(candidates["candidate_id"], value_set=trained_on))
        ids = dict(zip(candidates["candidate_id"].to_pylist(), candidates["token_ids"].to_pylist(), strict=True))
        for row in pairs.to_pylist():
            rejected = row["rejected_id"]
            examples.append(
                PreferenceExample(
                    pair_id=row["pair_id"],
                    prompt=known[row["prompt_id"]],
                    chosen_ids=tuple(ids[row["chosen_id"]]),
                    rejected_ids=None if rejected is None else tuple(ids[rejected]),
                    ref_chosen_logp=row["ref_chosen_logp"],
                    ref_rejected_logp=row["ref_rejected_logp"],
                    chosen_mas=row["chosen_mas"],
                    mas_gap=row["mas_gap"],
                )
            )
    return examples


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """Curves a seed, what it learned, and which pairs or answers trained which adapter."""
    trained = {
        seed: work.store.find(item["asset"], item["partition"], item["fingerprint"])
        for seed, item in artifact.manifest.metadata["adapters"].items()
    }
    if not trained:
        return {"preview": preview(artifact.table())}
    facts = {seed: adapter.manifest.metadata for seed, adapter in trained.items()}
    logs = {seed: adapter.table("training_log") for seed, adapter in trained.items()}
    first = next(iter(trained.values()))
    trained_on = trained_on_rows(Manifests(work.store), artifact)
    shared = {"the same training as": ", ".join(trained_as(artifact))} if trained_as(artifact) else {}
    return {
        **shared,
        "preview": preview(artifact.table()),
        **from_shards(trained_on, first.manifest.settings["training"]["kind"]),
        "trainable parameters": first.manifest.metadata["trainable parameters"],
        "language model forwards": first.manifest.metadata["language model forwards"],
        "curves": curves(
            training_curves(logs),
            "step",
        ),
        "health": health_table(facts),
        "health by seed": health_picture(facts),
        **learned(work, trained, sum(row["pairs"] or 0 for row in trained_on)),
        "inspector": dg.MetadataValue.url(prompts_url(recipe=work.partition)),
        "files": dg.MetadataValue.path(first.where("files")),
    }


def training_curves(logs: Mapping[str, pa.Table]) -> dict[str, Lines]:
    """The columns of CURVES over the steps, a line a seed; a log of before a column came has no line there."""
    return {
        name.replace("_", " "): {
            f"seed {seed}": (log["step"].to_pylist(), log[name].to_pylist())
            for seed, log in logs.items()
            if name in log.column_names
        }
        for name in CURVES
    }
