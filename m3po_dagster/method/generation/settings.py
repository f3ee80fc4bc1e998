"""What a study says about the model that answers and about how it is sampled (paper, section 3.2)."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from m3po_dagster.method.remote_code import TRUST_REMOTE_CODE, check_pinned
from m3po_dagster.settings import Settings


class ModelSettings(Settings):
    """Which vision-language model, in which precision, where."""

    path: str = Field(
        min_length=1,
        description="folder of a saved model and its processor, or its name on the Hugging Face hub",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub; not used for a folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of the weights; auto takes the one they were saved in"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU when there is one")
    device_map: Literal["none", "auto"] = Field(
        "none",
        description="auto spreads the layers over all GPUs and then the CPU's memory, for a model that one GPU can't "
        "hold; none keeps it whole on `device`",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="weights in 8 or 4 bits by bitsandbytes (the extra `quantized`), computing in `dtype`"
    )
    trust_remote_code: bool = Field(False, description=TRUST_REMOTE_CODE)

    @field_validator("path")
    @classmethod
    def _on_this_machine(cls, path: str) -> str:
        if path.startswith("s3://"):
            raise ValueError(f"{path}: model folders stay on this machine; copy it here and name the copy")
        return path

    @model_validator(mode="after")
    def _code_is_pinned(self) -> "ModelSettings":
        check_pinned(self.path, self.revision, self.trust_remote_code)
        return self

    @model_validator(mode="after")
    def _one_place(self) -> "ModelSettings":
        if self.device_map == "auto" and self.device != "auto":
            raise ValueError(f"device_map auto chooses the devices itself: leave out device {self.device}")
        return self


class RoundSettings(Settings):
    """Adaptive N: samples are drawn in rounds until a prompt's pair is settled (section 4.9)."""

    first: int = Field(8, ge=1, le=1024, description="samples of the first round")
    step: int = Field(8, ge=1, le=1024, description="samples of every further round")
    max: int = Field(32, ge=1, le=1024, description="N of a prompt that never settles; the last round may be shorter")
    patience: int = Field(1, ge=1, le=1024, description="a prompt stops after this many rounds that changed nothing")
    tolerance: float = Field(
        0.02,
        ge=0,
        allow_inf_nan=False,
        description="a round that keeps R_w and R_l changed nothing when it moved neither MAS(R_w) less the next best "
        "MAS nor S(R_l) less the next best S by more than this",
    )
    alpha: float = Field(0.5, ge=0, le=1e6, allow_inf_nan=False, description="alpha of equation 2, for this rule alone")
    delta: float = Field(0.1, ge=0, le=1e6, allow_inf_nan=False, description="delta of equation 2, for this rule alone")

    @model_validator(mode="after")
    def _first_within_max(self) -> "RoundSettings":
        if self.first > self.max:
            raise ValueError(f"first is {self.first}, above max, which is {self.max}")
        return self


def _kind_of_n(value: object) -> str:
    return "rounds" if isinstance(value, dict | RoundSettings) else "number"


FixedN = Annotated[int, Field(ge=1, le=1024), Tag("number")]
BY_KIND_OF_N = Discriminator(_kind_of_n)
"""Tells a number from rounds, so that an error speaks of the one that was meant."""


class SamplingSettings(Settings):
    """How the N candidates of a prompt are drawn."""

    n: Annotated[FixedN | Annotated[RoundSettings, Tag("rounds")], BY_KIND_OF_N] = Field(
        32, description="N, samples a prompt, 1 to 1024; or the rounds of an adaptive N"
    )
    temperature: float = Field(0.7, gt=0, description="divides the logits before sampling")
    top_p: float = Field(
        0.9, gt=0, le=1, description="draw from the likeliest tokens that together reach this probability"
    )
    max_new_tokens: int = Field(512, ge=1, description="an answer is cut after this many tokens")
    seed: int = Field(0, ge=0, description="base seed; each prompt's own seed is a hash of it and the prompt")
    prompts_per_batch: int = Field(
        16,
        ge=1,
        description="most prompts in flight at once, each with its N rows; halved when memory does not suffice",
    )
    part_seconds: float = Field(
        60.0,
        gt=0,
        description="what is finished is on disk after this many seconds; a crash loses that and the batch in flight",
    )
    max_failed: float = Field(
        0.05,
        ge=0,
        le=1,
        description="largest share of a shard's prompts that may fail; once more have, the step stops and says why",
    )

    @property
    def most(self) -> int:
        """The largest number of samples a prompt may get."""
        return self.n if isinstance(self.n, int) else self.n.max

    @property
    def rounds(self) -> tuple[int, ...]:
        """Samples of each round of a prompt that goes through all of them."""
        if isinstance(self.n, int):
            return (self.n,)
        further = range(self.n.first, self.n.max, self.n.step)
        return (self.n.first, *(min(self.n.step, self.n.max - drawn) for drawn in further))
