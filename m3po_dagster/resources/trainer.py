"""The trainer as a deployment runs it: DPO, SFT or simulated RLHF by the recipe's kind, on TRL."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings

if TYPE_CHECKING:
    from m3po_dagster.method.generation.prefill import Counts
    from m3po_dagster.method.optimization.run import TrainingResult


class TrainerResource:
    """Trains a LoRA adapter."""

    def rescored(
        self, model: ModelSettings, examples: Sequence[PreferenceExample], progress: Callable[[int, int], None]
    ) -> "tuple[list[PreferenceExample], Counts]":
        """The examples with reference log-probs of the trainer's own numerics, and what scoring them took."""
        from m3po_dagster.method.generation.model import load_model
        from m3po_dagster.method.optimization.reference import rescored

        return rescored(load_model(model), examples, progress)

    def train(
        self,
        model: ModelSettings,
        examples: Sequence[PreferenceExample],
        settings: DpoSettings | SftSettings | RlhfSettings,
        seed: int,
        out: Path,
        progress: Callable[[int, int], None],
    ) -> "TrainingResult":
        """Trains on the examples and writes the adapter into the folder `out`."""
        from m3po_dagster.method.optimization.dpo import train_dpo
        from m3po_dagster.method.optimization.rlhf import train_rlhf
        from m3po_dagster.method.optimization.sft import train_sft

        train = {"dpo": train_dpo, "sft": train_sft, "rlhf": train_rlhf}[settings.kind]
        return train(model, examples, settings, seed, out, progress)
