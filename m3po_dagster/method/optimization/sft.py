"""Supervised fine-tuning on R_w with LoRA on TRL: the paper's baseline without preferences (section 4.1)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3po_dagster.method.generation.model import LoadedModel, load_model, without_deprecation
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.optimization.examples import PreferenceExample, check_examples
from m3po_dagster.method.optimization.image_features import remember_images
from m3po_dagster.method.optimization.lora import save_adapter
from m3po_dagster.method.optimization.run import (
    Progress,
    TrainingResult,
    margin_rows,
    measured,
    n_trainable,
    new_trainer,
    trainer_arguments,
)
from m3po_dagster.method.optimization.settings import SftSettings


def train_sft(
    model: ModelSettings,
    examples: Sequence[PreferenceExample],
    settings: SftSettings,
    seed: int,
    out: Path,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains an adapter on the chosen answers of `examples`; rejected answers are ignored.

    Writes to `out`, calls `progress`, is determined by `seed` and raises as `train_dpo` does, but needs no reference:
    the stored log-probs are only reported, as what the answers had before.
    """
    check_examples(examples, needs_rejected=False)
    trainer, result = fit_sft(load_model(settings.model_of(model)), examples, settings, seed, progress)
    save_adapter(trainer.model, model, out)
    return result


def fit_sft(
    loaded: LoadedModel,
    examples: Sequence[PreferenceExample],
    settings: SftSettings,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Any, TrainingResult]:
    """`train_sft` on a model in memory, which gets the adapter; returns TRL's trainer, `trainer.model` trained, too."""
    from trl import SFTConfig, SFTTrainer

    model = loaded.model
    batches = Batches(loaded, examples)
    with tempfile.TemporaryDirectory() as folder, without_deprecation(), measured(model) as measures:
        config = SFTConfig(**trainer_arguments(model, settings, seed, folder))
        trainer = new_trainer(SFTTrainer, loaded, config, settings.lora, examples, batches.supervised, progress)
        remember_images(trainer, loaded, batches, settings, measures["counts"])
        trainer.train()
        margins = margin_rows(trainer.model, batches.supervised, examples, settings.batch_size, beta=None)
        if batches.features is not None:
            measures["counts"]["images_encoded"] = batches.features.encoded
    return trainer, TrainingResult(
        log=trainer.step_rows,
        margins=margins,
        n_examples=len(examples),
        n_trainable=n_trainable(trainer.model),
        **measures,
    )
