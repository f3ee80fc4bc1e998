"""What a recipe says about simulated RLHF: a proxy reward, and policy optimisation against it (paper, section 4.1)."""

from typing import Literal

from pydantic import Field, model_validator

from m3po_dagster.method.optimization.settings import TrainingSettings

TOLD_BY = 4
"""How good the reward is gets told by at most one answer for so many that it may be fitted to."""


class RlhfSettings(TrainingSettings):
    """Simulated RLHF: a reward fitted to MAS guides the policy, which answers anew at every step.

    Its examples are prompts: an epoch goes over all of which an answer has a score.
    """

    kind: Literal["rlhf"] = Field("rlhf", description="Optimise the policy against a proxy reward.")
    batch_size: int = Field(
        8, ge=1, description="Prompts a step; where the last step of an epoch lacks some, others come again."
    )
    epochs: int = Field(1, ge=1, description="Passes over the prompts.")
    algorithm: Literal["rloo", "grpo"] = Field(
        "rloo",
        description="TRL's trainer: rloo compares an answer's reward with the mean of its siblings' and takes the KL "
        "penalty out of the reward; grpo divides by their spread and adds the penalty to the loss.",
    )
    learning_rate: float = Field(1e-5, gt=0, le=1, description="Peak learning rate of AdamW.")
    beta: float = Field(
        0.05,
        ge=0,
        description="Price of a nat of KL to the base model, in units of MAS: an answer's log-ratio in rloo, the mean "
        "over tokens in grpo. 0 leaves the policy free.",
    )
    answers: int = Field(8, ge=2, le=256, description="Answers sampled to each prompt of a step.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits, in sampling and in the loss.")
    max_new_tokens: int = Field(256, ge=1, description="A sampled answer is cut after this many tokens.")
    answers_at_once: int = Field(
        8, ge=1, description="Answers in one forward with gradients: it bounds memory and changes no step."
    )
    reward_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the prompts, drawn by training seed and prompt id, whose scored answers the proxy reward "
        "is fitted to; the rest tell how well it ranks.",
    )
    reward_answers: int = Field(
        20_000,
        ge=1,
        description="The proxy reward is fitted to about this many answers at most, by whole prompts, and told by a "
        "quarter as many.",
    )

    @model_validator(mode="after")
    def _one_policy(self) -> "RlhfSettings":
        if self.lora.dropout:
            raise ValueError(
                f"lora.dropout {self.lora.dropout} would make the policy that is trained another at every forward than "
                "the one that sampled the answers: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _whole_forwards(self) -> "RlhfSettings":
        sampled = self.batch_size * self.answers
        if sampled % self.answers_at_once:
            raise ValueError(
                f"a step samples batch_size x answers = {sampled} answers, which is no multiple of answers_at_once "
                f"({self.answers_at_once}): choose one of its divisors"
            )
        return self
