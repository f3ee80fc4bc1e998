"""The trainer as a deployment runs it: DPO or SFT by the recipe's kind, on TRL."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings

if TYPE_CHECKING:
    from m3po_dagster.method.generation.prefill import Counts
    from m3po_dagster.method.optimization.run import TrainingResult


class TrainerResource:
    """Trains a LoRA adapter."""

    def rescored(
        self, model: ModelSettings, examples: Sequence[PreferenceExample], progress: Callable[[int, int], None]
    ) -> "tuple[list[PreferenceExample], Counts]":
        """The examples with reference log-probs of the trainer's own numerics, and what scoring them took.

        `model` is as training loads it. Raises ValueError when it can't be trained.
        """
        from m3po_dagster.method.generation.model import load_model
        from m3po_dagster.method.optimization.lora import check_trainable
        from m3po_dagster.method.optimization.reference import rescored

        loaded = load_model(model)
        check_trainable(loaded)
        return rescored(loaded, examples, progress)

    def train(
        self,
        model: ModelSettings,
        examples: Sequence[PreferenceExample],
        settings: DpoSettings | SftSettings,
        seed: int,
        out: Path,
        progress: Callable[[int, int], None],
    ) -> "TrainingResult":
        """Trains on the examples and writes the adapter into the folder `out`."""
        from m3po_dagster.method.optimization.dpo import train_dpo
        from m3po_dagster.method.optimization.sft import train_sft

        train = train_dpo if settings.kind == "dpo" else train_sft
        return train(model, examples, settings, seed, out, progress)
