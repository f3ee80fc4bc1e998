"""Where a training runs and how it is kept safe: nothing here changes what comes out, so no fingerprint holds it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from m3po_dagster.settings import Settings

LAUNCH_CONFIGS = Path(__file__).with_name("launch_configs")
"""Configuration files of `accelerate launch` that ship."""


class _TrainerSettings(Settings):
    """What every trainer can be told."""

    checkpoint_minutes: float | None = Field(
        10,
        ge=0,
        allow_inf_nan=False,
        description="a training is on disk after this many minutes, so that a killed one loses no more; 0 writes after "
        "every step, null never",
    )
    per_device_batch_size: int | None = Field(
        None,
        ge=1,
        description="most examples a GPU takes at once; a recipe's step goes through it in several passes and stays "
        "the same step. null: as many as the step has for each process",
    )

    def division(self, batch_size: int) -> tuple[int, int]:
        """How a step of `batch_size` examples is divided: examples a pass and process, and passes.

        Raises ValueError, naming the figures, when it does not divide.
        """
        share, rest = divmod(batch_size, self.processes)
        if rest:
            raise ValueError(
                f"batch_size {batch_size} is a whole step's and does not divide over {self.processes} processes "
                f"(trainer.processes): the nearest that do are {' and '.join(map(str, self._nearest(batch_size)))}"
            )
        most = self.per_device_batch_size or share
        if most < share and share % most:
            raise ValueError(
                f"batch_size {batch_size} gives each of {self.processes} process(es) {share} examples a step, which "
                f"trainer.per_device_batch_size {most} does not divide"
            )
        pass_size = min(most, share)
        return pass_size, share // pass_size

    def _nearest(self, batch_size: int) -> list[int]:
        below = batch_size // self.processes * self.processes
        return [size for size in (below, below + self.processes) if size]


class LocalTrainerSettings(_TrainerSettings):
    """One process: the one that runs the step."""

    kind: Literal["local"] = Field("local", description="train in the process that runs the step, on one device")

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return 1


class AccelerateTrainerSettings(_TrainerSettings):
    """Several processes on this machine, a GPU each, started by `accelerate launch`."""

    kind: Literal["accelerate"] = Field("accelerate", description="train in several processes by `accelerate launch`")
    processes: int = Field(ge=2, le=1024, description="processes, a GPU each, on this machine")
    config_file: str = Field(
        "ddp",
        description="a configuration of `accelerate launch`: the name of one that ships (ddp, fsdp, deepspeed_zero2, "
        "deepspeed_zero3) or a YAML file; its number of processes gives way to `processes`",
    )

    @property
    def launch_config(self) -> Path:
        """The configuration file."""
        return _config_path(self.config_file)

    @field_validator("config_file")
    @classmethod
    def _there(cls, value: str) -> str:
        if not _config_path(value).is_file():
            ships = ", ".join(sorted(path.stem for path in LAUNCH_CONFIGS.glob("*.yaml")))
            raise ValueError(f"{value!r} is no configuration that ships ({ships}) and no file that is there")
        return value


def _config_path(value: str) -> Path:
    shipped = LAUNCH_CONFIGS / f"{value}.yaml"
    return shipped if "/" not in value and shipped.is_file() else Path(value)


TrainerSettings = Annotated[LocalTrainerSettings | AccelerateTrainerSettings, Field(discriminator="kind")]
