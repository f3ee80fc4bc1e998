"""Numerics: the name of the engine and the precision that a log-prob was computed with.

Two log-probs are compared only where their numerics are equal. Engines differ by tenths of a nat a token on prompts
with images, more than delta of section 3.5, so one recipe stands on one numerics, and DPO's reference on the trainer's.
The device is no part of it: one engine in one precision is one numerics, wherever it ran.
"""

from collections.abc import Iterable

from m3po_dagster.method.generation.placement import precision
from m3po_dagster.method.generation.settings import ModelSettings


class MixedNumerics(ValueError):
    """Log-probs of more than one numerics where only one may be; the message names them and what to do."""


def of_precision(precision: str) -> str:
    """The numerics of a model in this process, of the sampler and of the trainer alike."""
    return f"transformers/{precision}"


def of_model(model: ModelSettings) -> str:
    """The numerics that the model of these settings has once it is loaded here; with `dtype: auto` it is loaded."""
    if model.dtype == "auto":
        from m3po_dagster.method.generation.model import load_model

        return load_model(model).numerics
    return of_precision(precision(model.dtype, model))


def of_server(engine: str, version: str, dtype: str) -> str:
    """The numerics of a server, as the study declares it."""
    return f"{engine}-{version}/{dtype}"


def only_one(found: Iterable[str | None], where: str) -> str | None:
    """The only numerics among those found; None when there is none. Raises MixedNumerics naming them and `where`."""
    names = sorted({name for name in found if name is not None})
    if len(names) > 1:
        raise MixedNumerics(
            f"{where}: log-probs of different numerics ({', '.join(names)}) can't be compared with each other; "
            "sample or rescore all of it with one engine and precision"
        )
    return names[0] if names else None
