"""What a study says about the model that answers and about how it is sampled (paper, section 3.2)."""

from typing import Literal

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _one_place(self) -> "ModelSettings":
        if self.device_map == "auto" and self.device != "auto":
            raise ValueError(f"device_map auto chooses the devices itself: leave out device {self.device}")
        return self


class SamplingSettings(Settings):
    """How the N candidates of a prompt are drawn."""

    engine: Literal["transformers"] = Field("transformers", description="what runs the model")
    n: int = Field(32, ge=1, le=1024, description="N, samples a prompt")
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
    part_prompts: int = Field(64, ge=1, description="prompts a committed part: what a crash can lose at most")
