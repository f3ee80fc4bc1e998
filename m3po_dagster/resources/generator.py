"""The base model as a deployment loads it. One model stays warm in a process, over shards and recipes."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from m3po_dagster.method.generation.settings import ModelSettings

if TYPE_CHECKING:
    from m3po_dagster.method.generation.model import LoadedModel


class GeneratorResource(dg.ConfigurableResource):
    """Loads the study's base model, alone or with an adapter."""

    threads: int = Field(0, ge=0, description="CPU threads of the model; 0: one a core")

    def load(self, model: ModelSettings, adapter: Path | None = None) -> "LoadedModel":
        """The model ready to answer. Raises FileNotFoundError naming the folder or hub id that is not there."""
        return _warm(model, adapter, self.threads)


@lru_cache(maxsize=1)
def _warm(model: ModelSettings, adapter: Path | None, threads: int) -> "LoadedModel":
    import torch

    from m3po_dagster.method.generation.model import load_model

    if threads:
        torch.set_num_threads(threads)
    return load_model(model, adapter)
