"""What a recipe says about training: DPO on the selected pairs, or SFT on R_w alone (paper, sections 3.6 and 4.1)."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.losses import NLL, Divergence, LossName, check_loss
from m3po_dagster.settings import Settings

PRESETS = {
    "paper": {"learning_rate": 5e-5, "batch_size": 8, "warmup_ratio": 0.05, "epochs": 1},
    "safe": {"learning_rate": 5e-6, "batch_size": 8, "warmup_ratio": 0.05, "epochs": 1},
}
"""Section 4.1's settings, and the same at a learning rate that is usual for DPO with LoRA (1e-7 to 1e-5)."""

CHANGES_NO_WEIGHT = (
    "gradient_checkpointing",
    "image_features",
    "image_features_gb",
    "reference_sample",
    "answers_at_once",
)
"""Settings that say how fast, in how much memory, or how closely watched: the adapter that comes out is the same."""

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Loss = Annotated[
    Annotated[LossName, Tag("name")] | Annotated[dict[LossName, Weight], Field(min_length=1), Tag("mix")],
    Discriminator(lambda loss: "mix" if isinstance(loss, dict) else "name"),
]


def option(default: Any, **kwargs: Any) -> Any:
    """A field that settings at their default dump without: what they made before the option came is still found."""
    return Field(default, exclude_if=lambda value: value == default, **kwargs)


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
    quantization: Literal["none", "8bit", "4bit"] = option(
        "none",
        description="Load the base model in 8 or 4 bits while training only (QLoRA); none takes it as `model` says. "
        "Its log-probs differ from those stored, so that the reference is scored again, in those bits. "
        "4bit needs a GPU.",
    )

    def identity(self) -> dict[str, Any]:
        """What decides the adapter, as plain JSON: the settings with those of CHANGES_NO_WEIGHT at their defaults.

        They are not left out, so that what was trained with the defaults before they were no part of it is still found.
        """
        fields = type(self).model_fields
        plain = {name: fields[name].get_default() for name in CHANGES_NO_WEIGHT if name in fields}
        return self.model_copy(update=plain).model_dump(mode="json")

    def model_of(self, model: ModelSettings) -> ModelSettings:
        """The study's model as training loads it."""
        if self.quantization == "none":
            return model
        return model.model_copy(update={"quantization": self.quantization})


class AnswerTrainingSettings(TrainingSettings):
    """What training on given answers shares: every prompt's image is seen again and again."""

    image_features: Literal["auto", "always", "never"] = option(
        "auto",
        description="Encode each image once and keep what the language model gets of it. auto does where the model "
        "takes encoded images and is found to get the same of them, always stops the run where not.",
    )
    image_features_gb: float = option(
        4.0, ge=0, description="Memory of the host for encoded images, in GB; one beyond it is encoded at every sight."
    )


class DpoSettings(AnswerTrainingSettings):
    """Direct Preference Optimization (equation 4), the stored log-probs as P_ref."""

    kind: Literal["dpo"] = Field("dpo", description="Train on preference pairs.")
    preset: Literal["paper", "safe"] | None = Field(
        None,
        # Not part of what a recipe is: the values are.
        exclude=True,
        description="Fills learning_rate, batch_size, warmup_ratio and epochs where they are not given: paper (5e-5, "
        "8, 0.05, 1; section 4.1), or safe, the same at 5e-6.",
    )
    beta: float = Field(0.1, gt=0, description="Strength of the pull towards the base model, in equation 4.")
    learning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate of AdamW.")
    loss: Loss = option(
        "sigmoid",
        description="TRL's loss by name, or several as a mapping of name to weight, which are added up; sigmoid is "
        "equation 4.",
    )
    nll_weight: float = Field(
        0,
        ge=0,
        description="Weight of an added mean negative log-likelihood of R_w's tokens; 0 is equation 4 as printed.",
    )
    label_smoothing: float = option(
        0.0,
        ge=0,
        lt=0.5,
        description="Probability that a preference is the wrong way round; for robust, aot, aot_unpaired, and for "
        "exo_pair, which needs one above 0.",
    )
    f_divergence: Divergence = option(
        "reverse_kl",
        description="What the policy's distance from the base model is measured by; another than reverse_kl for "
        "losses of the difference of both answers' scores alone.",
    )
    f_divergence_alpha: float = option(0.5, ge=0, le=10, description="Alpha of f_divergence alpha_divergence.")
    ld_alpha: float | None = option(
        None,
        ge=0,
        le=1,
        description="LD-DPO: weight of the tokens by which the longer answer exceeds the shorter one; null counts "
        "them in full. The stored log-probs are of whole answers, so that a reference forward runs every step.",
    )
    wpo_weighting: bool = option(
        False, description="WPO: multiply a pair's loss by how likely the policy finds both answers, a token."
    )
    discopop_tau: float = option(0.05, gt=0, le=10, description="Temperature of the loss discopop.")
    pair_weight: Literal["none", "mas_gap"] = option(
        "none",
        description="mas_gap multiplies a pair's loss by MAS(R_w) - MAS(R_l) over the mean of all pairs: what the "
        "judge is surer of counts more.",
    )
    layout: Literal["trl", "packed"] = option(
        "trl",
        description="packed reads a pair as one row, [prompt, image included][chosen][rejected], neither answer seeing "
        "the other: half the rows. A sample is compared with TRL's layout, prompt and image twice, before training.",
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

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if isinstance(preset, str) and preset in PRESETS else given

    @model_validator(mode="before")
    @classmethod
    def _nll_by_its_weight(cls, given: Any) -> Any:
        # The same losses are the same recipe: sft beside another one is what nll_weight adds.
        loss = given.get("loss") if isinstance(given, dict) else None
        if not isinstance(loss, dict) or len(loss) < 2 or given.get("nll_weight"):
            return given
        weight = loss.get(NLL)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            return given
        return {**given, "loss": {name: other for name, other in loss.items() if name != NLL}, "nll_weight": weight}

    @field_validator("loss")
    @classmethod
    def _one_by_name(cls, loss: Any) -> Any:
        # The same loss is the same recipe however it is written.
        return next(iter(loss)) if isinstance(loss, dict) and list(loss.values()) == [1] else loss

    @model_validator(mode="after")
    def _loss(self) -> "DpoSettings":
        check_loss(self)
        return self

    @property
    def losses(self) -> dict[str, float]:
        """Every loss with its weight, that of `nll_weight` included."""
        named = {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)
        return {**named, NLL: self.nll_weight} if self.nll_weight else named


class SftSettings(AnswerTrainingSettings):
    """Supervised fine-tuning on R_w: the mean negative log-likelihood of its tokens."""

    kind: Literal["sft"] = Field("sft", description="Train on R_w alone.")
    learning_rate: float = Field(5e-5, gt=0, le=1, description="Peak learning rate of AdamW.")
