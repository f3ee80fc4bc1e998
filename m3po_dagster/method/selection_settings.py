"""How preference pairs are chosen: the settings of section 3.5 and of the rules it is compared with."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from m3po_dagster.settings import Settings

MAS = "mas"
LENGTH = "n_tokens"

# Which judge, how noisy, and how many samples: what may stand in for MAS and for the whole set of candidates.
_JUDGE = {"score", "score_noise", "noise_seed", "candidates"}
_ELIGIBLE = {"confidence", "min_gap", "min_chosen_mas"}
_M3P = {"alpha", "delta", "allow_bonus", "max_length_difference"} | _ELIGIBLE | _JUDGE

# A figure that a rule would ignore is refused: a study must not seem to vary what it does not.
FIELDS_OF_RULE: dict[str, set[str]] = {
    "m3p": _M3P,
    "flipped": _M3P,
    "vanilla": {"seed"} | _ELIGIBLE | _JUDGE,
    "random": {"seed"} | _ELIGIBLE | _JUDGE,
    "reward_max_min": {"confidence", "min_gap", "reward", "candidates"},
    "sweet_spot": {"max_length_difference"} | _ELIGIBLE | _JUDGE,
    "margin_pairs": {"max_pairs", "seed"} | _ELIGIBLE | _JUDGE,
    "longest": {"confidence", "candidates"},
    "best_only": {"min_chosen_mas"} | _JUDGE,
    "every_answer": _JUDGE,
}
# Not dumped at their default: recipes that were there before these fields keep their hash, and their adapters.
_SILENT_AT_DEFAULT = _JUDGE | {"max_length_difference"}

RULES_WITHOUT_REJECTED = ("best_only", "every_answer")
RULES_WITH_LOSER_SCORE = ("m3p", "flipped")


class SelectionSettings(Settings):
    """How the pairs (R_w, R_l) of a prompt are chosen (section 3.5): one a prompt, or several by rule margin_pairs.

    Only the fields that the rule uses may be given, and only they are dumped (those of the judge, the number of
    candidates and the length only where they are not at their default): a dump validates again, and its hash does not
    depend on fields without effect. Raises `pydantic.ValidationError` for a bad value or a field that the rule ignores.
    """

    rule: Literal[
        "m3p",
        "vanilla",
        "reward_max_min",
        "sweet_spot",
        "margin_pairs",
        "random",
        "flipped",
        "longest",
        "best_only",
        "every_answer",
    ] = Field(
        "m3p",
        description="m3p: argmax MAS against argmax S (equations 1 to 3); vanilla: the better of two random ones; "
        "reward_max_min: best against worst of one reward; sweet_spot: argmax MAS against the one nearest to mean - 2 "
        "standard deviations; margin_pairs: any pairs with a gap above min_gap, as many with a longer chosen answer as "
        "with a shorter one; random: vanilla's pair in a random direction; flipped: m3p's pair the wrong way round; "
        "longest: the longest against the shortest, whatever MAS; best_only: R_w alone, for SFT; every_answer: every "
        "scored answer alone, for kind rlhf",
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
    seed: int = Field(
        0, ge=0, description="seed of the random draws of vanilla, random and margin_pairs; one draw a prompt"
    )
    max_pairs: int = Field(2, ge=1, le=1000, description="most pairs that margin_pairs takes of a prompt")
    max_length_difference: int | None = Field(
        None,
        ge=0,
        description="an eligible loser's tokens differ from R_w's by at most this many; null: no bound",
    )
    score: str = Field(
        MAS,
        min_length=1,
        description="the score column that stands for MAS: a scorer's name for what it alone would choose",
    )
    score_noise: float = Field(
        0.0,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="standard deviation of Gaussian noise on the score before anything is ranked: a noisier judge",
    )
    noise_seed: int = Field(
        0, ge=0, description="seed of score_noise; noise depends on it and the candidate's id alone"
    )
    candidates: int | None = Field(
        None, ge=1, description="only samples with k below this, as if no more had been drawn; null: all"
    )

    @model_validator(mode="after")
    def _only_what_the_rule_uses(self) -> "SelectionSettings":
        unused = sorted(self.model_fields_set - FIELDS_OF_RULE[self.rule] - {"rule"})
        if unused:
            used = ", ".join(sorted(FIELDS_OF_RULE[self.rule])) or "no further field"
            raise ValueError(f"rule {self.rule} does not use {', '.join(unused)}; it uses {used}: remove the others")
        if self.rule == "reward_max_min" and self.reward is None:
            raise ValueError("rule reward_max_min needs reward: the name of the score column to rank by")
        if self.noise_seed and not self.score_noise:
            raise ValueError("noise_seed does nothing without score_noise: give score_noise, or remove noise_seed")
        return self

    @model_serializer(mode="wrap")
    def _dump_what_the_rule_uses(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        used = FIELDS_OF_RULE[self.rule] | {"rule"}
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if name in used and not (name in _SILENT_AT_DEFAULT and getattr(self, name) == fields[name].default)
        }

    @property
    def ranks_by(self) -> str:
        """The column that decides which answer is better: that of the reward, the length, or what stands for MAS."""
        return {"reward_max_min": self.reward, "longest": LENGTH}.get(self.rule, self.score)

    @property
    def prefers_higher_mas(self) -> bool:
        """Whether every pair's chosen answer has the higher MAS, or the higher score that stands for it."""
        return self.rule not in ("flipped", "random") and self.ranks_by == self.score

    @property
    def score_columns(self) -> list[str]:
        """The score columns that are read: MAS or what stands for it, and the reward."""
        return list(dict.fromkeys([MAS, *([] if self.rule == "longest" else [self.ranks_by])]))
