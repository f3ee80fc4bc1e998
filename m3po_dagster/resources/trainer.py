"""The trainer as a deployment runs it: by the recipe's kind, on TRL, in one process or several."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.device_use import torch_with_gpu
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.rlhf_settings import RlhfSettings
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.study import Study

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

        with forgotten():
            loaded = load_model(model)
            check_trainable(loaded)
            scored = rescored(loaded, examples, progress)
            del loaded
        return scored

    def train(
        self,
        study: Study,
        examples: Sequence[PreferenceExample],
        settings: DpoSettings | SftSettings | RlhfSettings,
        seed: int,
        out: Path,
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> "TrainingResult":
        """Trains where the study says and writes the adapter into the folder `out`; checkpoints go into `scratch`."""
        from m3po_dagster.method.optimization.train import train

        with forgotten():
            return train(study.trainer, study.model, examples, settings, seed, out, scratch, progress)


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What the work inside let go of is freed on leaving, so that the next seed's model finds the memory.

    A trainer and its model hold each other: until the collector comes by, two models would be in memory.
    """
    try:
        yield
    finally:
        gc.collect()
        if (torch := torch_with_gpu()) is not None:
            torch.cuda.empty_cache()
