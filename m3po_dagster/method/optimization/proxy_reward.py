"""The proxy reward of simulated RLHF: the base model's own view of an answer, regressed on part of the scores.

The paper's baseline (section 4.1) optimises the policy against "a proxy reward". Here it is a ridge regression of MAS
on `AnswerFeatures`, fitted to the scored candidates of part of the prompts. How well it ranks the answers of the other
prompts is measured, since a policy follows a bad reward as willingly as a good one.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m3po_dagster.method.alignment.intervals import LEVEL
from m3po_dagster.method.alignment.judge_bias import by_prompt, rank_correlation
from m3po_dagster.method.optimization.answer_features import AnswerFeatures
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.ridge import Ridge, fit_ridge
from m3po_dagster.method.optimization.rlhf_settings import TOLD_BY, RlhfSettings
from m3po_dagster.method.prompt import Prompt

CHOOSES_PENALTY = 0.2
"""Share of the fitted prompts that choose the penalty before the fit on all of them."""


@dataclass(frozen=True)
class Split:
    """Indices of the examples that the reward is fitted to, and of those that tell how good it is."""

    fitted: list[int]
    told: list[int]


@dataclass(frozen=True)
class ProxyReward:
    """A reward in units of MAS.

    `figures`: prompts and answers of the fit, the penalty, and on the other prompts: their number and that of their
    answers, r2 (share of the variance of MAS explained), rank_correlation (Spearman's with MAS within prompts, averaged
    over those where both vary) with its 95 % interval low and high; None where nothing is there to tell.
    """

    features: AnswerFeatures
    ridge: Ridge
    figures: Mapping[str, float | int | None]

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> np.ndarray:
        """The rewards (n,) of answers, as sampled token ids, to prompts: one forward of the base model."""
        return self.ridge(self.features(prompts, answers))


def split(examples: Sequence[PreferenceExample], settings: RlhfSettings, seed: int) -> Split:
    """By whole prompts in the order of a hash of seed and prompt id, so that what else is there moves no prompt.

    Raises ValueError when either side has fewer than two prompts.
    """
    places: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        places.setdefault(example.prompt.prompt_id, []).append(index)
    order = sorted((_draw(seed, prompt_id), prompt_id) for prompt_id in places)
    sides = (
        [prompt_id for draw, prompt_id in order if draw < settings.reward_share],
        [prompt_id for draw, prompt_id in order if draw >= settings.reward_share],
    )
    if min(map(len, sides)) < 2:
        raise ValueError(
            f"a proxy reward needs two prompts to be fitted to and two to be told by: reward_share "
            f"{settings.reward_share} of {len(order)} prompts leaves {len(sides[0])} and {len(sides[1])}"
        )
    fitted, told = (
        _first_of(side, places, most)
        for side, most in zip(sides, (settings.reward_answers, settings.reward_answers // TOLD_BY), strict=True)
    )
    return Split(fitted, told)


def _draw(seed: int, prompt_id: str) -> float:
    digest = hashlib.sha256(f"proxy reward {seed} {prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _first_of(prompt_ids: Sequence[str], places: Mapping[str, list[int]], most: int) -> list[int]:
    """The examples of prompts in turn, at least of two, until the next would make them more than `most`."""
    taken: list[int] = []
    for number, prompt_id in enumerate(prompt_ids):
        if number >= 2 and len(taken) + len(places[prompt_id]) > most:
            break
        taken += places[prompt_id]
    return taken


def forwards(parts: Split, at_once: int) -> int:
    """How many forwards reading the examples takes."""
    return sum(math.ceil(len(part) / at_once) for part in (parts.fitted, parts.told))


def fit_proxy_reward(
    features: AnswerFeatures,
    examples: Sequence[PreferenceExample],
    parts: Split,
    at_once: int,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> ProxyReward:
    """Fits to MAS(R) of `examples[i].chosen_ids`, `at_once` answers a forward, calling `done` after each.

    Raises ValueError, naming the example, for one without a finite MAS, and when the MAS of the fitted ones is all the
    same: there is nothing to learn.
    """
    for index in (*parts.fitted, *parts.told):
        mas = examples[index].chosen_mas
        if mas is None or not math.isfinite(mas):
            raise ValueError(
                f"pair {examples[index].pair_id}: its answer's MAS is {mas}; a proxy reward is fitted to scored "
                "answers (rule every_answer)"
            )

    def read(indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        blocks = []
        for start in range(0, len(indices), at_once):
            some = [examples[index] for index in indices[start : start + at_once]]
            blocks.append(features([one.prompt for one in some], [one.chosen_ids for one in some]))
            done()
        mas = np.array([examples[index].chosen_mas for index in indices])
        return np.concatenate(blocks), mas, [examples[index].prompt.prompt_id for index in indices]

    rows, mas, prompt_ids = read(parts.fitted)
    if np.ptp(mas) == 0:
        raise ValueError(
            f"all {len(mas)} answers of the proxy reward have a MAS of {mas[0]}: there is nothing to learn"
        )
    prompts = list(dict.fromkeys(prompt_ids))
    chooses = set(sorted(prompts, key=lambda key: _draw(seed + 1, key))[: max(1, int(CHOOSES_PENALTY * len(prompts)))])
    ridge, penalty = fit_ridge(rows, mas, np.array([key in chooses for key in prompt_ids]))
    figures = {"prompts": len(prompts), "answers": len(mas), "penalty": penalty}
    return ProxyReward(features, ridge, figures | told(ridge, *read(parts.told)))


def told(ridge: Ridge, rows: np.ndarray, mas: np.ndarray, prompt_ids: Sequence[str]) -> dict[str, float | int | None]:
    """The figures of a reward on answers that it was not fitted to."""
    guess, spread = ridge(rows), float(np.square(mas - mas.mean()).sum())
    ranks = rank_correlation(by_prompt(prompt_ids), guess, mas, LEVEL)
    return {
        "told_prompts": len(set(prompt_ids)),
        "told_answers": len(mas),
        "r2": 1 - float(np.square(mas - guess).sum()) / spread if spread else None,
        "rank_correlation": _known(ranks.value),
        "rank_correlation_low": _known(ranks.low),
        "rank_correlation_high": _known(ranks.high),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
