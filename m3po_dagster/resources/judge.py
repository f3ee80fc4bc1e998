"""The judge as a deployment loads it. It stays warm in a process, over shards."""

from functools import lru_cache
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from m3po_dagster.study import JudgeSettings

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.mas import MasScorer


class JudgeResource(dg.ConfigurableResource):
    """Loads the study's scorers."""

    device: str = Field("auto", description="where the scorers run; auto: the GPU if there is one")

    def load(self, judge: JudgeSettings) -> "MasScorer":
        """The scorers ready to score. Raises FileNotFoundError for a missing model, ValueError for no calibration."""
        # A calibration file may change while a process lives: its maps are part of what is looked up, not its path.
        return _warm(judge.calibrated(), self.device)


def loaded_judge(judge: JudgeSettings, device: str) -> "MasScorer":
    """The scorers on a device; auto: the GPU if there is one. Raises as `JudgeResource.load`."""
    return judge.build(device_of(device))


def device_of(device: str) -> str:
    """The device; of auto the GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_warm = lru_cache(maxsize=1)(loaded_judge)
