"""Checks of a recipe's adapters: what training did to the model, by the figures measured while it was in memory.

Every check looks at every seed and stands on the worst. Only weights or figures that are no numbers block: any other
adapter can be measured, and a control that is meant to lose must be.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from m3po_dagster.assets.checks import (
    AGREES_WITH_MAS,
    CHOSEN_DRIFT,
    IMAGE_ABLATION,
    KL_TO_BASE,
    LEARNED,
    LOSS_FALLS,
    PROXY_REWARD,
    WEIGHTS_FINITE,
    Check,
    Rule,
)
from m3po_dagster.assets.display import rows_table
from m3po_dagster.assets.pictures import Interval, intervals
from m3po_dagster.method.optimization.health import FEWEST_STEPS

LOWEST_DRIFT = -0.1
"""Nats a token: each token of R_w a tenth less likely. Recipes of the embedded world that help lie from 0 to 0.05."""
LARGEST_KL = 0.2
"""Nats a token, between the largest of a recipe there that helps (0.05) and the smallest of one that harms (0.4)."""
FEWEST_EXAMPLES = 10
"""Examples below which a mean's standard error says little of it."""
ONE_SIDED = 1.645
"""Standard errors below the mean that the truth is above with 95 %."""

REWARD_ACCURACY = "reward_accuracy"

REWARD_RANKS = "reward rank correlation"
"""What simulated RLHF's trainer says of its proxy reward on prompts that it was not fitted to."""

Figures = Mapping[str, float]


def training_checks(trained: Mapping[int, Mapping[str, Any]]) -> tuple[Check, ...]:
    """What the adapters show of their training; `trained` has each seed's metadata, of which these are read:

    `finite`: whether every number of it is one; `reward accuracy` (None where nothing was rejected); and `health`, the
    figures of `health.health`. A check without figures passes and says why.
    """
    figures = {
        seed: fact["health"] | ({} if fact["reward accuracy"] is None else {REWARD_ACCURACY: fact["reward accuracy"]})
        for seed, fact in trained.items()
    }
    return (
        _weights_finite({seed: fact["finite"] for seed, fact in trained.items()}),
        _loss_falls(figures),
        _bounded(LEARNED, figures, REWARD_ACCURACY, lambda value: value > 0.5, _percent, worst=min),
        _bounded(AGREES_WITH_MAS, figures, "mas_agreement", lambda value: value > 0.5, _percent, worst=min),
        _bounded(CHOSEN_DRIFT, figures, "chosen_drift", lambda value: value >= LOWEST_DRIFT, _nats, worst=min),
        _bounded(KL_TO_BASE, figures, "kl_to_base", lambda value: value <= LARGEST_KL, _nats, worst=max),
        _image_ablation(figures),
        _proxy_reward(trained),
    )


def _weights_finite(finite: Mapping[int, bool]) -> Check:
    wrong = [seed for seed, fine in finite.items() if not fine]
    found = f"NaN or infinity in seed {', '.join(map(str, wrong))}" if wrong else "all finite"
    return WEIGHTS_FINITE.outcome(not wrong, found, adapters=len(finite), not_finite=len(wrong))


def _loss_falls(figures: Mapping[int, Figures]) -> Check:
    known = _known(figures, "loss_last")
    if not known:
        few = f"not measured: fewer than {FEWEST_STEPS} steps, or a training by another measure than its loss"
        return LOSS_FALLS.outcome(True, few if figures else _unknown(figures))
    falls = {seed: one["loss_first"] - one["loss_last"] for seed, one in known.items()}
    worst = min(falls, key=falls.__getitem__)
    one = known[worst]
    return LOSS_FALLS.outcome(
        falls[worst] > 0,
        f"from {one['loss_first']:.4f} to {one['loss_last']:.4f}{_of_seed(worst, known)}",
        worst=falls[worst],
        **_by_seed(falls),
    )


def _bounded(
    rule: Rule,
    figures: Mapping[int, Figures],
    name: str,
    holds: Callable[[float], bool],
    shown: Callable[[float], str],
    worst: Callable,
) -> Check:
    known = {seed: one[name] for seed, one in _known(figures, name).items()}
    if not known:
        return rule.outcome(True, _unknown(figures))
    seed = worst(known, key=known.__getitem__)
    return rule.outcome(
        holds(known[seed]), f"{shown(known[seed])}{_of_seed(seed, known)}", worst=known[seed], **_by_seed(known)
    )


def _image_ablation(figures: Mapping[int, Figures]) -> Check:
    known = {
        seed: one for seed, one in _known(figures, "image_gain_error").items() if one["sampled"] >= FEWEST_EXAMPLES
    }
    if not known:
        few = any("image_gain" in one for one in figures.values())
        return IMAGE_ABLATION.outcome(True, f"fewer than {FEWEST_EXAMPLES} examples" if few else _unknown(figures))
    lows = {seed: one["image_gain"] - ONE_SIDED * one["image_gain_error"] for seed, one in known.items()}
    worst = min(lows, key=lows.__getitem__)
    one = known[worst]
    kept = {seed: max(0.0, one["gain_blank"] / one["gain"]) for seed, one in known.items() if one["gain"] > 0}
    share = f", {kept[worst]:.0%} kept" if worst in kept else ""
    return IMAGE_ABLATION.outcome(
        lows[worst] > 0,
        f"{one['gain']:.4f} beside the image, {one['gain_blank']:.4f} beside a blank one{share}; the difference is "
        f"above {lows[worst]:.4f} with 95 %{_of_seed(worst, known)}",
        worst=lows[worst],
        **_by_seed({seed: one["image_gain"] for seed, one in known.items()}),
        **{f"seed {seed} kept": share for seed, share in kept.items()},
    )


def _known(figures: Mapping[int, Figures], name: str) -> dict[int, Figures]:
    return {seed: one for seed, one in figures.items() if name in one}


def _unknown(figures: Mapping[int, Figures]) -> str:
    return "not measured for this kind of training" if figures else "nothing was trained"


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {f"seed {seed}": value for seed, value in values.items()}


def _of_seed(seed: int, known: Mapping[int, object]) -> str:
    return f" (seed {seed}, the worst of {len(known)})" if len(known) > 1 else ""


def _percent(value: float) -> str:
    return f"{value:.1%} of the pairs"


def _nats(value: float) -> str:
    return f"{value:+.4f} nat a token"


def health_table(trained: Mapping[int, Mapping[str, Any]]) -> dg.TableMetadataValue:
    """The figures, a row a seed; what is not known of a kind of training has no column."""
    columns = dict.fromkeys(name for fact in trained.values() for name in fact["health"])
    return rows_table([{"seed": seed} | fact["health"] for seed, fact in trained.items()], ["seed", *columns])


def health_picture(trained: Mapping[int, Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Seeds side by side: the drift of both answers, the KL, and what is left of the gain beside a blank image.

    Simulated RLHF is not looked at beside a blank.
    """
    blank = any("gain_blank" in fact["health"] for fact in trained.values())
    panels = {
        "change of log-prob, nat a token": {"R_w": "chosen_drift", "R_l": "rejected_drift"},
        "KL(policy || base), nat a token": {"KL": "kl_to_base"},
        "gain beside the image and a blank" if blank else "gain beside the image": {
            "image": "gain",
            "blank": "gain_blank",
        },
    }

    def rows(names: Mapping[str, str]) -> list[Interval]:
        return [
            Interval(f"{label}, seed {seed}", fact["health"][name], None, None, stands_out=number == 0)
            for number, (label, name) in enumerate(names.items())
            for seed, fact in trained.items()
            if name in fact["health"]
        ]

    return intervals({title: rows(names) for title, names in panels.items()}, zero=True)


def _proxy_reward(trained: Mapping[int, Mapping[str, Any]]) -> Check:
    """A policy follows a reward that is noise as willingly as a good one."""
    lows = {seed: fact[f"{REWARD_RANKS} low"] for seed, fact in trained.items() if REWARD_RANKS in fact}
    if not lows:
        return PROXY_REWARD.outcome(True, "not measured: no reward guided the training")
    if None in lows.values():
        return PROXY_REWARD.outcome(False, "too few prompts with answers that both tell apart to say so")
    worst = min(lows, key=lows.__getitem__)
    value, low = trained[worst][REWARD_RANKS], lows[worst]
    found = f"a rank correlation of {value:.2f} with MAS within prompts, at least {low:.2f}{_of_seed(worst, lows)}"
    return PROXY_REWARD.outcome(low > 0, found, rank_correlation=value, low=low)
