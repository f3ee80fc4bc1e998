"""The base model as a deployment runs it: one model warm in a process, over shards and recipes, or a server of it."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.judge import loaded_judge
from m3po_dagster.study import JudgeSettings, ScorerSettings, Study

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.mas import MasScorer
    from m3po_dagster.method.generation.adapter import Adapter
    from m3po_dagster.method.generation.adaptive import Rounds
    from m3po_dagster.method.generation.engine import Engine
    from m3po_dagster.method.generation.model import LoadedModel
    from m3po_dagster.method.generation.vocabulary import Vocabulary


class GeneratorResource:
    """Loads the study's base model, alone or with an adapter, and gives the engine that samples from it."""

    def load(self, model: ModelSettings, adapter: Path | None = None) -> "LoadedModel":
        """The model ready to answer, with the adapter of a folder or none; it is loaded once, adapters take turns.

        Raises FileNotFoundError naming the folder or hub id that is not there.
        """
        loaded = _warm(model)
        loaded.slot.use(adapter)
        return loaded

    def engine(self, study: Study, adapter: "Adapter | None" = None) -> "Engine":
        """What samples candidates and answers benchmarks.

        Raises as `load`; for a server ValueError when its key is not set, EndpointError when it can't load an adapter.
        """
        if study.generator.kind == "server":
            from m3po_dagster.method.generation.served import ServedEngine

            return ServedEngine(study.generator, _vocabulary(study.model), adapter)
        from m3po_dagster.method.generation.sampler import TransformersEngine

        return TransformersEngine(self.load(study.model, adapter.folder if adapter else None))

    def rounds(self, study: Study, prompts: Sequence[Prompt]) -> "Rounds | None":
        """What says which of these prompts get another round (section 4.9); None with a fixed N."""
        from m3po_dagster.method.generation.adaptive import Rounds

        settings = study.generation
        return Rounds(prompts, settings.n, _scorer(settings.scorer).score) if settings.scorer else None


@lru_cache(maxsize=1)
def _warm(model: ModelSettings) -> "LoadedModel":
    from m3po_dagster.method.generation.model import load_model

    return load_model(model)


def times_loaded() -> int:
    """How often this process has loaded a base model: once, however many shards and recipes it served."""
    return _warm.cache_info().misses


@lru_cache(maxsize=1)
def _scorer(settings: ScorerSettings) -> "MasScorer":
    # Alone, it is all of MAS; the judge of the same shard keeps its own place.
    return loaded_judge(JudgeSettings(scorers=(settings.model_copy(update={"weight": 1.0}),)), "auto")


@lru_cache(maxsize=1)
def _vocabulary(model: ModelSettings) -> "Vocabulary":
    from m3po_dagster.method.generation.vocabulary import load_vocabulary

    return load_vocabulary(model)
