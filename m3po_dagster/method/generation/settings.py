"""What a study says about the model that answers and about how it is sampled (paper, section 3.2)."""

from typing import Literal

from pydantic import Field

from m3po_dagster.settings import Settings


class ModelSettings(Settings):
    """Which vision-language model, in which precision, on which device."""

    path: str = Field(
        min_length=1,
        description="folder of a saved model and its processor, or its name on the Hugging Face hub",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub; not used for a folder")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU when there is one")


class SamplingSettings(Settings):
    """How the N candidates of a prompt are drawn."""

    n: int = Field(32, ge=1, le=1024, description="N, samples a prompt")
    temperature: float = Field(0.7, gt=0, description="divides the logits before sampling")
    top_p: float = Field(
        0.9, gt=0, le=1, description="draw from the likeliest tokens that together reach this probability"
    )
    max_new_tokens: int = Field(512, ge=1, description="an answer is cut after this many tokens")
    seed: int = Field(0, ge=0, description="base seed; each prompt's own seed is a hash of it and the prompt")
    prompts_per_batch: int = Field(16, ge=1, description="prompts in flight at once, each with its N rows")
    part_prompts: int = Field(64, ge=1, description="prompts a committed part: what a crash can lose at most")

    @property
    def rounds(self) -> tuple[int, ...]:
        """Samples of each round of a prompt that goes through all of them."""
        return (self.n,)
