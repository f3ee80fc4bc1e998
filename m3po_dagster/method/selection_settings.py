"""How preference pairs are chosen: the settings of section 3.5 and of the rules it is compared with."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from m3po_dagster.settings import Settings

_M3P = {"alpha", "delta", "confidence", "allow_bonus", "min_gap", "min_chosen_mas"}

# A figure that a rule would ignore is refused: a study must not seem to vary what it does not.
FIELDS_OF_RULE: dict[str, set[str]] = {
    "m3p": _M3P,
    "flipped": _M3P,
    "vanilla": {"confidence", "min_gap", "min_chosen_mas", "seed"},
    "random": {"confidence", "min_gap", "min_chosen_mas", "seed"},
    "reward_max_min": {"confidence", "min_gap", "reward"},
    "best_only": {"min_chosen_mas"},
}


class SelectionSettings(Settings):
    """How one pair (R_w, R_l) a prompt is chosen (section 3.5).

    Only the fields that the rule uses may be given, and only they are dumped: a dump validates again, and its hash does
    not depend on fields without effect. Raises `pydantic.ValidationError` for a bad value or a field that the rule
    ignores.
    """

    rule: Literal["m3p", "vanilla", "reward_max_min", "random", "flipped", "best_only"] = Field(
        "m3p",
        description="m3p: argmax MAS against argmax S (equations 1 to 3); vanilla: the better of two random ones; "
        "reward_max_min: best against worst of one reward; random: vanilla's pair in a random direction; "
        "flipped: m3p's pair the wrong way round; best_only: R_w alone, for SFT",
    )
    alpha: float = Field(
        0.5, ge=0, le=1e6, allow_inf_nan=False, description="weight of the confidence penalty in equation 2; 0: none"
    )
    delta: float = Field(
        0.1,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="margin of equation 2 in nats: a loser this much less likely than R_w is not penalised",
    )
    confidence: Literal["mean", "sum"] = Field(
        "mean", description="log P(R | I, Q) per token, or summed over the answer; DPO itself always uses the sum"
    )
    allow_bonus: bool = Field(
        False, description="drop the max(0, .) of equation 2, so that a loser likelier than R_w + delta earns a bonus"
    )
    min_gap: float = Field(
        0.0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="a loser's score must be lower than R_w's by strictly more than this",
    )
    min_chosen_mas: float | None = Field(
        None,
        allow_inf_nan=False,
        description="no pair where the chosen candidate's MAS is lower than this; null: no bound",
    )
    reward: str | None = Field(None, min_length=1, description="the score column that reward_max_min ranks by")
    seed: int = Field(0, ge=0, description="seed of the random draws of vanilla and random, one draw a prompt")

    @model_validator(mode="after")
    def _only_what_the_rule_uses(self) -> "SelectionSettings":
        unused = sorted(self.model_fields_set - FIELDS_OF_RULE[self.rule] - {"rule"})
        if unused:
            used = ", ".join(sorted(FIELDS_OF_RULE[self.rule]))
            raise ValueError(f"rule {self.rule} does not use {', '.join(unused)}; it uses {used}: remove the others")
        if self.rule == "reward_max_min" and self.reward is None:
            raise ValueError("rule reward_max_min needs reward: the name of the score column to rank by")
        return self

    @model_serializer(mode="wrap")
    def _dump_what_the_rule_uses(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        used = FIELDS_OF_RULE[self.rule] | {"rule"}
        return {name: value for name, value in handler(self).items() if name in used}
