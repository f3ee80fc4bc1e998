"""What a recipe says about training: DPO on the selected pairs, or SFT on R_w alone (paper, sections 3.6 and 4.1)."""

from typing import Literal

from pydantic import Field

from m3po_dagster.settings import Settings


class LoraSettings(Settings):
    """LoRA on every linear layer of the language model; vision tower, projector and LM head stay frozen."""

    r: int = Field(16, ge=1, le=1024, description="Rank of the adapter's matrices.")
    alpha: float = Field(32, gt=0, description="Scale of the adapter: its output is multiplied by alpha / r.")
    dropout: float = Field(0, ge=0, lt=1, description="Dropout on the adapter's input while training.")


class TrainingSettings(Settings):
    """What DPO and SFT share."""

    batch_size: int = Field(8, ge=1, description="Examples a step; the last step of an epoch takes what is left.")
    epochs: int = Field(1, ge=1, description="Passes over the examples.")
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps over which the learning rate rises from 0."
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate goes on after the warm-up."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a fifth slower."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings, description="The adapter that is trained.")


class DpoSettings(TrainingSettings):
    """Direct Preference Optimization (equation 4), the stored log-probs as P_ref."""

    kind: Literal["dpo"] = Field("dpo", description="Train on preference pairs.")
    beta: float = Field(0.1, gt=0, description="Strength of the pull towards the base model, in equation 4.")
    learning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate of AdamW.")
    nll_weight: float = Field(
        0,
        ge=0,
        description="Weight of an added mean negative log-likelihood of R_w's tokens; 0 is equation 4 as printed.",
    )
    reference_sample: int = Field(
        8, ge=1, description="Pairs whose stored log-probs are compared with the trainer's own before training."
    )
    reference_tolerance: float = Field(
        1e-2,
        gt=0,
        description="Largest difference, in nats a sequence, allowed between a stored log-prob and the trainer's own. "
        "The default is for float32; half precision needs more, and then the difference is noise in the loss.",
    )


class SftSettings(TrainingSettings):
    """Supervised fine-tuning on R_w: the mean negative log-likelihood of its tokens."""

    kind: Literal["sft"] = Field("sft", description="Train on R_w alone.")
    learning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate of AdamW.")
