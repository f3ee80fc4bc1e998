"""The losses of TRL's DPO trainer by name, and which of them each option of the loss means anything to.

    check_loss(settings)                    # raises ValueError for an option that the chosen losses ignore
    DPOConfig(**loss_arguments(settings))

All of them compare the policy with P_ref on the two answers of a pair (section 3.6); `sigmoid` is equation 4. `sft` is
the mean negative log-likelihood of R_w's tokens.
"""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from m3po_dagster.method.optimization.settings import DpoSettings

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

NLL = "sft"
SMOOTHED = frozenset({"exo_pair", "robust", "aot", "aot_unpaired"})
"""Losses in which a preference may be wrong with a given probability."""

OF_THE_DIFFERENCE = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"})
"""Losses of the difference of both answers' scores, the only ones in which another f-divergence's constant cancels."""

UNWEIGHED = frozenset({"aot", "aot_unpaired", NLL, "hinge"})
"""Losses that TRL can't weigh pair by pair: they sort a batch's answers, or are one mean over its tokens, or (hinge)
break the backward pass when multiplied in place, as TRL does."""


def check_loss(settings: "DpoSettings") -> None:
    """Raises ValueError, saying what to do, for an option that the losses of `settings` ignore or can't take."""
    chosen = set(settings.losses)
    compared = chosen - {NLL}

    def refuse(option: str, why: str) -> None:
        raise ValueError(f"{option}: {why}, and the loss is {' + '.join(sorted(chosen))}; leave it out")

    if settings.nll_weight and not isinstance(settings.loss, str) and NLL in settings.loss:
        raise ValueError("nll_weight adds the loss sft, which `loss` has already; give its weight in one of them")
    if settings.nll_weight and settings.loss == NLL:
        raise ValueError("nll_weight adds the loss sft, which is the `loss` already; leave it out")
    if settings.label_smoothing and not chosen & SMOOTHED:
        refuse("label_smoothing", f"only {_named(SMOOTHED)} have it")
    if "exo_pair" in chosen and not settings.label_smoothing:
        raise ValueError("loss exo_pair needs a label_smoothing above 0; its paper recommends 0.001")
    if settings.f_divergence != "reverse_kl" and (not compared or compared - OF_THE_DIFFERENCE):
        refuse("f_divergence", f"another than reverse_kl is defined for {_named(OF_THE_DIFFERENCE)} alone")
    if settings.f_divergence_alpha != 0.5 and settings.f_divergence != "alpha_divergence":
        raise ValueError(
            "f_divergence_alpha: it is alpha_divergence's alone; name that as f_divergence, or leave it out"
        )
    if settings.discopop_tau != 0.05 and "discopop" not in chosen:
        refuse("discopop_tau", "only discopop has it")
    if settings.ld_alpha is not None and not compared:
        refuse("ld_alpha", "it weighs answers that are compared, which sft does not do")
    for option, given in (("wpo_weighting", settings.wpo_weighting), ("pair_weight", settings.pair_weight != "none")):
        if given and chosen & UNWEIGHED:
            refuse(option, f"TRL can't weigh the pairs of {_named(UNWEIGHED)}")


def loss_arguments(settings: "DpoSettings") -> dict[str, Any]:
    """The arguments of TRL's DPOConfig that make its loss."""
    return {
        "beta": settings.beta,
        "loss_type": list(settings.losses),
        "loss_weights": list(settings.losses.values()),
        "label_smoothing": settings.label_smoothing,
        "f_divergence_type": settings.f_divergence,
        "f_alpha_divergence_coef": settings.f_divergence_alpha,
        "ld_alpha": settings.ld_alpha,
        # A pair's weight goes into the loss where TRL's own weighting does (pair_weights.py).
        "use_weighting": settings.wpo_weighting or settings.pair_weight != "none",
        "discopop_tau": settings.discopop_tau,
    }


def _named(losses: frozenset[str]) -> str:
    return ", ".join(sorted(losses))
