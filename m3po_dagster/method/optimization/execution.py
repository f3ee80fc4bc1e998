"""How a training is carried out, as far as no result depends on it."""

from dataclasses import dataclass

from m3po_dagster.method.optimization.checkpoints import Checkpoints


@dataclass(frozen=True)
class Execution:
    """Where checkpoints go, if anywhere, and how a step is divided.

    `pass_size` is the most examples a process takes at once; None is all of its share of a step.
    """

    checkpoints: Checkpoints | None = None
    pass_size: int | None = None


PLAIN = Execution()
"""In one go, without checkpoints."""


def processes() -> int:
    """Number of processes that train together."""
    import torch

    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if started else 1
