"""The model card of an exported adapter or merged model: what it is, what made it, what it scored, how to load it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from m3po_dagster.evaluation.board import difference_text, mark, mean_text
from m3po_dagster.export.card_text import PAPER, card, cell, licence_rows, made_by, settings_text, table
from m3po_dagster.export.made import ChosenAdapter, Made
from m3po_dagster.export.measured import Measure, Measured, measured
from m3po_dagster.export.provenance import counts_table, lineage_table, settings_table
from m3po_dagster.lineage.manifests import recipe_of
from m3po_dagster.method.optimization.defaults import left_out
from m3po_dagster.storage.artifact import Artifact

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_LOAD_ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained("{base}", dtype="{dtype}"{revision})
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
processor = AutoProcessor.from_pretrained("{base}"{revision})
```"""

_LOAD_MERGED = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER", dtype="{dtype}")
processor = AutoProcessor.from_pretrained("THIS_FOLDER")
```

For a second round of M3PO give this folder as `model.path` of a study."""

_TAUGHT = {
    "dpo": "a judge prefers one answer to another, and DPO teaches the preference",
    "sft": "a judge scores them, and SFT teaches those that its recipe chooses",
    "rlhf": "a judge scores them, a proxy reward is fitted to the scores, and simulated RLHF optimises the model "
    "against that reward",
}
"""What each kind of training makes of the answers."""

_ALWAYS_TOLD = ("loss", "layout", "quantization")
"""Settings of a training that are told at their default too. Those of one loss alone say nothing there."""

_FIGURES = {
    "examples": "{:,}",
    "trainable parameters": "{:,}",
    "training seconds": "{:.1f}",
    "peak memory": "{:,} bytes",
    "reward accuracy": "{:.3f}",
    "language model forwards": "{:,}",
    "reference": "{}",
    "reference numerics": "{}",
    "reward r2": "{:.3f}",
    "reward rank correlation": "{:.3f}",
    "reward rank correlation low": "{:.3f}",
    "reward rank correlation high": "{:.3f}",
    "reward prompts": "{:,}",
    "reward told prompts": "{:,}",
}


def model_card(made: Made, chosen: ChosenAdapter, merged: bool) -> str:
    """The README.md. Raises ExportError or StoreError when the store lacks what the adapter was made from."""
    artifact, study = chosen.artifact, made.study
    trained_as = recipe_of(artifact.key.partition)
    recipe = chosen.recipe or trained_as
    # The pairs of a recipe that shares a training are equal to those trained on, and selected by settings of its own.
    own = chosen.head if chosen.recipe else None
    shards, found = made.trained_on(own or artifact), measured(made, chosen)
    name = f"{study.name}-{recipe}-seed{chosen.seed}"
    base = _base_of(artifact)
    here = "" if "/" in base["name"] or merged else f"\n\n`{base['name']}` stands for the base model's folder."
    described = study.recipes[recipe].description if recipe in study.recipes else ""
    training = artifact.manifest.settings["training"]
    kind = training["kind"]
    shared = (
        f" The training is shared with recipe `{trained_as}`: both select equal pairs and train on them alike."
        if recipe != trained_as
        else ""
    )
    what = (
        f"`{base['name']}` with a LoRA adapter merged into its weights"
        if merged
        else f"A LoRA adapter (PEFT) over `{base['name']}`"
    )
    load = _LOAD_MERGED if merged else _LOAD_ADAPTER
    revision = f', revision="{base["revision"]}"' if base["revision"] else ""
    libraries = artifact.manifest.libraries
    parts = [
        f"# {name}",
        f"{what}, trained on the model's own answers after {PAPER}: {_TAUGHT[kind]}. "
        f"Recipe `{recipe}`{f': {described}' if described else ''}. Training seed {chosen.seed}.{shared}",
        "## Loading",
        load.format(base=base["name"], dtype=study.model.dtype, revision=revision) + here,
        "## Measured",
        *measured_parts(found),
        "## Data",
        counts_table(shards, "pair" if kind == "dpo" else "answer"),
        settings_table(shards),
        "## Training",
        f"Settings: {settings_text(training | _always_told(training))}.",
        table(("figure", "value"), _training_rows(artifact)),
        "## Licences",
        table(
            ("what", "licence"),
            licence_rows(study.licences, list(study.dataset.sources), [one.name for one in study.judge.assessors]),
        ),
        "## Lineage",
        "A fingerprint says what a thing was made from, its content what it holds. `m3po lineage adapter "
        f"{artifact.fingerprint[:16]}` shows all of it in the store that it came from; `lineage.json` sums it up.",
        lineage_table(shards, artifact, *found.sources),
        "## How it was made",
        f"{made_by()}; trained {artifact.manifest.created:%Y-%m-%d} with Python {artifact.manifest.python}, "
        + ", ".join(f"{library} {version}" for library, version in sorted(libraries.items()))
        + ".",
        "## Limits",
        "It learned what its judge prefers on the prompts above, and no more: other images, other instructions and "
        "what the judge can't see were not looked at. What the base model does wrong elsewhere, it does too. The "
        "figures above are of the study's benchmarks alone.",
    ]
    return card(_data(made, chosen, found, name, base["name"], merged), parts)


def _always_told(training: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in left_out(training).items() if name in _ALWAYS_TOLD}


def _base_of(artifact: Artifact) -> dict[str, Any]:
    """Name and revision of the base model as the adapter's own config has them."""
    import json

    config = json.loads((artifact.path("files") / "adapter_config.json").read_text(encoding="utf-8"))
    return {"name": config["base_model_name_or_path"], "revision": config.get("revision")}


def measured_parts(found: Measured) -> Iterator[str]:
    """What the benchmarks say of the adapter and its recipe: how to read the table, and the table."""
    if not found.measures:
        yield "Not measured: the benchmarks of the study have no scores of this adapter as it stands."
        return
    yield (
        "`this adapter`: the value with its 95 % bootstrap interval over the test images. `recipe's mean`: over its "
        "training seeds, `±` their standard deviation. `difference`: that mean minus the base model's with the "
        "leaderboard's 95 % interval, and what that covers; `**`: significant, after Holm's correction over all "
        "recipes that the figure compares with the base model; `*`: only before that correction, so no result. Figures "
        "are not corrected for one another."
    )
    fixed = [f"{item.column.name} {item.base:g}" for item in found.measures if item.fixed and item.base is not None]
    if fixed:
        yield f"Compared with a fixed value in place of the base model's: {', '.join(fixed)}."
    yield table(
        ("metric", "base", "this adapter", "recipe's mean", "seeds", "difference", "interval over"),
        [_measure_row(item) for item in found.measures],
    )


def _measure_row(item: Measure) -> tuple[str, ...]:
    digits = item.column.digits
    own = f"{item.own['value']:.{digits}f}"
    if item.own["ci_low"] is not None:
        own += f" ({item.own['ci_low']:.{digits}f} to {item.own['ci_high']:.{digits}f})"
    base = "–" if item.base is None else f"{item.base:.{digits}f}"
    if item.board is None:
        return item.column.label, base, own, "–", "–", "–", "–"
    mean, seeds = mean_text(item.board, item.column), str(item.board["n_seeds"])
    if item.board["difference"] is None:
        return item.column.label, base, own, mean, seeds, "–", "–"
    difference = f"{difference_text(item.board, item.column)} {mark(item.board)}".rstrip()
    return item.column.label, base, own, mean, seeds, difference, item.board["interval_over"]


def _training_rows(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Figures of the manifest and the log: what the training took, how it began and ended, its health where known."""
    facts, log = artifact.manifest.metadata, artifact.table("training_log")
    # Nothing is compared with the stored log-probs but by DPO.
    compared = artifact.manifest.settings["training"]["kind"] == "dpo"
    for name, shown in _FIGURES.items():
        if facts.get(name) is not None and (compared or not name.startswith("reference")):
            yield name, shown.format(facts[name])
    yield "optimiser steps", str(len(log))
    for name in ("loss", "reward_margin", "reward_accuracy", "token_accuracy"):
        values = log[name].drop_null().to_pylist()
        if values:
            yield f"{name.replace('_', ' ')}, first and last step", f"{values[0]:.4g}, {values[-1]:.4g}"
    margins = artifact.table("margins", ["reward_margin"])["reward_margin"].drop_null().to_numpy()
    if len(margins):
        yield "mean reward margin after training", f"{margins.mean():.4g}"
    for name, value in (facts.get("health") or {}).items():
        yield f"health: {name.replace('_', ' ')}", "not looked at" if value is None else cell(value)


def _data(made: Made, chosen: ChosenAdapter, found: Measured, name: str, base: str, merged: bool) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=item.kind,
            dataset_name=f"{item.column.benchmark} of {made.study.name}",
            metric_type=item.column.metric,
            metric_name=item.column.label,
            metric_value=round(item.own["value"], 4),
        )
        for item in found.measures
    ]
    return ModelCardData(
        base_model=base,
        base_model_relation="finetune" if merged else "adapter",
        library_name="transformers" if merged else "peft",
        license=made.study.licences.release,
        datasets=list(made.study.dataset.sources),
        pipeline_tag="image-text-to-text",
        tags=["m3po", "preference-optimisation", chosen.artifact.manifest.settings["training"]["kind"], "lora"],
        model_name=name,
        eval_results=results or None,
    )
