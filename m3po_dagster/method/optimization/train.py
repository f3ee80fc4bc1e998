"""Trains an adapter by the kind that a recipe asks for: in this process, or in several that `accelerate` launches."""

from collections.abc import Callable, Sequence
from pathlib import Path

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.checkpoints import Checkpoints
from m3po_dagster.method.optimization.dpo import train_dpo
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.execution import Execution
from m3po_dagster.method.optimization.launch import launch
from m3po_dagster.method.optimization.rlhf import train_rlhf
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.optimization.run import TrainingResult
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.sft import train_sft
from m3po_dagster.method.optimization.trainer_settings import AccelerateTrainerSettings, LocalTrainerSettings
from m3po_dagster.s3_files.ahead import ahead

BY_KIND: dict[str, Callable[..., TrainingResult]] = {"dpo": train_dpo, "sft": train_sft}


def train(
    trainer: LocalTrainerSettings | AccelerateTrainerSettings,
    model: ModelSettings,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings | SftSettings | RlhfSettings,
    seed: int,
    out: Path,
    scratch: Path,
    progress: Callable[[int, int], None],
) -> TrainingResult:
    """Trains on the examples and writes the adapter into the folder `out`.

    `scratch` is a folder that an attempt leaves to the next one: checkpoints are in it. Simulated RLHF samples as it
    trains: it runs in this process, without checkpoints. Raises as `train_dpo` does, and ValueError when the recipe
    can't be trained as `trainer` asks.
    """
    if isinstance(settings, RlhfSettings):
        if trainer.kind == "accelerate":
            raise ValueError("kind rlhf runs in one process: train this recipe with `trainer: {kind: local}`")
        with ahead(example.prompt.image_path for example in examples):
            return train_rlhf(model, examples, settings, seed, out, progress)
    pass_size, _ = trainer.division(settings.batch_size)
    if trainer.kind == "accelerate":
        return launch(trainer, model, examples, settings, seed, out, scratch, progress)
    every = trainer.checkpoint_minutes
    execution = Execution(None if every is None else Checkpoints(scratch / "checkpoints", every), pass_size)
    with ahead(example.prompt.image_path for example in examples):
        return BY_KIND[settings.kind](model, examples, settings, seed, out, progress, execution)
