"""Whether a judge judges as people do: MAS and each of its columns against human ratings (sections 3.3 and 4.9).

The first experiment to make with a judge, before anything hangs on it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from m3po_dagster.method.alignment.agreement import (
    RESAMPLES,
    Agreement,
    RaterAgreement,
    Statistic,
    agreement,
    rater_agreement,
)
from m3po_dagster.method.alignment.mas import MasScorer
from m3po_dagster.method.alignment.ratings import RatedAnswer, by_prompt
from m3po_dagster.method.alignment.rounds import TOGETHER

FEW_ANSWERS = 100
"""Fewer answers than this rarely tell a judge that agrees from one that doesn't."""
FEW_IMAGES = 20
"""With fewer images a bootstrap interval is too narrow."""
CHANCE = 0.5


@dataclass(frozen=True)
class Validation:
    """The agreement of MAS and of each other column with the raters, and that of the raters with each other."""

    columns: Mapping[str, Agreement]
    unscored: Mapping[str, int]
    """Answers without a MAS, by reason."""
    raters: RaterAgreement | None

    @property
    def mas(self) -> Agreement:
        """The column that selection goes by."""
        return self.columns["mas"]


def score_rated(
    scorer: MasScorer, rated: Sequence[RatedAnswer], progress: Callable[[int, int], None] | None = None
) -> list[dict]:
    """The judge's row of each rated answer, in order. `progress` is told (prompts done, prompts)."""
    together = getattr(scorer, "together", TOGETHER)
    prompts = list(by_prompt(rated).items())
    rows: dict[int, dict] = {}
    for start in range(0, len(prompts), together):
        some = prompts[start : start + together]
        found = scorer.score([(prompt, [rated[place].answer for place in places]) for prompt, places in some])
        rows |= zip((place for _, places in some for place in places), found, strict=True)
        if progress:
            progress(min(start + together, len(prompts)), len(prompts))
    return [rows[place] for place in range(len(rated))]


def validate(
    rated: Sequence[RatedAnswer],
    rows: Sequence[Mapping],
    columns: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Validation:
    """What the rows of a judge say of its agreement with the ratings; `columns` beside MAS, as `MasScorer` has them."""
    ratings = [one.rating for one in rated]
    prompts, images = [one.prompt.prompt_id for one in rated], [one.image_sha256 for one in rated]
    return Validation(
        {
            name: agreement([row[name] for row in rows], ratings, prompts, images, resamples, seed)
            for name in ("mas", *columns)
        },
        dict(Counter(row["status"] for row in rows if row["mas"] is None)),
        rater_agreement([one.ratings for one in rated], images, resamples, seed),
    )


def verdict(found: Validation) -> list[str]:
    """What the intervals of MAS say, in sentences, and what they leave open."""
    mas = found.mas
    said = [_order(mas), _pairs(mas)]
    if found.raters and found.raters.one_against_others.value is not None:
        said.append(
            "One rater against the mean of the others has a rank correlation of "
            f"{shown(found.raters.one_against_others)}: a judge can't be asked for much more."
        )
    if mas.answers < FEW_ANSWERS or mas.images < FEW_IMAGES:
        said.append(
            f"{mas.answers} answers on {mas.images} images are few: rate at least {FEW_ANSWERS} to 200 answers on "
            f"{FEW_IMAGES} images or more before trusting the intervals."
        )
    return said


def shown(statistic: Statistic) -> str:
    """A value with its interval, two decimals."""
    if statistic.value is None:
        return "not defined"
    value = f"{statistic.value:.2f}"
    return value if statistic.low is None else f"{value} ({statistic.low:.2f} to {statistic.high:.2f})"


def _order(mas: Agreement) -> str:
    found, value = mas.spearman, shown(mas.spearman)
    if mas.answers == 0:
        return "No answer has a MAS, so nothing can be said of it: the reasons stand above."
    if found.value is None:
        return "Nothing can be said of MAS and the ratings: one of them is the same for all answers that were scored."
    if found.low is None:
        return f"MAS has a rank correlation of {value} with the ratings; too few images for an interval."
    if found.low > 0:
        return f"MAS rises with the ratings: rank correlation {value}, at least {found.low:.2f} with 97.5 % confidence."
    if found.high < 0:
        return f"MAS falls where the ratings rise: rank correlation {value}. Training on it would teach the opposite."
    return f"These ratings don't show that MAS rises with them: rank correlation {value}, and 0 lies inside."


def _pairs(mas: Agreement) -> str:
    found = mas.pairs
    if mas.answers == 0:
        return "For the same reason nothing is known of the order within a prompt, which decides the pairs."
    if found.accuracy.value is None:
        return (
            "No prompt has two answers that the raters put in an order, so nothing is known of the order within a "
            "prompt, which decides the pairs."
        )
    share = f"{found.accuracy.value:.0%} of {found.pairs} pairs of answers to one prompt as the raters do"
    if found.accuracy.low is None:
        return f"MAS orders {share}; too few images for an interval."
    if found.accuracy.low > CHANCE:
        against_chance = "better than chance"
    elif found.accuracy.high < CHANCE:
        against_chance = "worse than chance"
    else:
        against_chance = "no better than chance, as far as this shows"
    return (
        f"Within a prompt, which decides the pairs, MAS orders {share} ({found.accuracy.low:.0%} to "
        f"{found.accuracy.high:.0%}; {found.tied} tied, counted half): {against_chance}."
    )
