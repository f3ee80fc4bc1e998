"""Asset checks: what must hold of a result. Blocking where bad data would otherwise be trained on.

A check is computed with the result, on the table itself, and its outcome is part of the result's manifest: a reused
result shows it again, and a step refuses inputs whose blocking check failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.evaluation.benchmark import OFFICIAL
from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.method.filtering import Leak
from m3po_dagster.method.generation.diversity import Diversity

LEAST_SPREAD = 0.01
"""Range of a prompt's MAS below which it tells nothing apart: one grade of one aspect moves it by 0.08."""
EXAMPLES = 3
ROUNDING = 1e-9
"""What a difference of two scores may lack for float arithmetic alone."""


@dataclass(frozen=True)
class Check:
    """The outcome of a check."""

    name: str
    blocking: bool
    passed: bool
    description: str
    figures: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A check before it is applied: its name, whether it blocks, what must hold."""

    name: str
    blocking: bool
    must_hold: str

    def outcome(self, passed: bool, found: str, **figures: float | int) -> Check:
        """The rule applied: whether it holds, and what was found in one sentence."""
        return Check(self.name, self.blocking, bool(passed), f"{self.must_hold}. Found: {found}.", figures)


KEPT_SHARE = Rule("kept_share", False, "at least half of the shard's records pass the filters")
UNCONTAMINATED = Rule(
    "uncontaminated",
    True,
    "no kept prompt shows an image of a known benchmark (by COCO id), or of one of the study's own (the same file)",
)
PROMPTS_ANSWERED = Rule("prompts_answered", True, "no more prompts failed to be sampled than the study's max_failed")
DIVERSITY = Rule(
    "diversity",
    False,
    "candidates don't collapse: on average at least 2 distinct ones a prompt, a similarity of at most 0.9 between two "
    "samples, and at most 10 % truncated",
)
PROBE_ORDER = Rule(
    "probe_order", False, "each served scorer puts the right answer above the wrong one in at least 3 of 4 probe images"
)
SCORED = Rule("scored", True, "no more candidates are unscored than the study's max_unscored")
SPREAD = Rule("spread", False, "MAS tells candidates apart, by at least 0.01, in at least half of the prompts")
TOP_TIES = Rule("top_ties", False, "on average at most half of a prompt's scored answers share its best MAS")
POSITION_BIAS = Rule(
    "position_bias",
    False,
    "within prompts, a score has at most a rank correlation of 0.1 with the answer's place in its request, or with the "
    "distance of that place from the middle",
)
LENGTH_BIAS = Rule(
    "length_bias", False, "of two answers to a prompt with different MAS, the longer one wins at most 60 % of the time"
)
SWAP_CONSISTENCY = Rule(
    "swap_consistency",
    False,
    "shown a request's answers in the reverse order, a served scorer reverses at most 13 % of its orders",
)
SHUFFLED_IMAGE = Rule(
    "shuffled_image", False, "every scorer of MAS that looks at the image scores the same answers lower beside another"
)
KNOWN_PAIRS = Rule("known_pairs", False, "MAS puts the better answer first in at least 75 % of the known pairs")
NOT_INVERTED = Rule(
    "not_inverted", True, "MAS does not put the worse answer of the known pairs first clearly more often than chance"
)
CONFIDENCE_FINITE = Rule("confidence_finite", True, "every log-prob is finite and not above 0")
PAIRS_WELL_FORMED = Rule("pairs_well_formed", True, "no pair rejects its chosen answer, every log-prob is finite")
PAIR_YIELD = Rule("pair_yield", False, "at least half of the prompts gave a pair")
WEIGHTS_FINITE = Rule("weights_finite", True, "every adapter weight and every loss is finite")
LEARNED = Rule("learned", False, "at the end of training most chosen answers have the higher reward")
ANSWER_FORMAT = Rule(
    "answer_format", False, "where a rule reads the form of an answer, at least 90 % are in the asked format"
)
UNTRAINED = Rule(
    "untrained", True, "no image of a benchmark is among those the recipe was trained on, by bytes or by COCO id"
)

RULES: dict[str, tuple[Rule, ...]] = {
    "judge_probe": (PROBE_ORDER,),
    "filtered_instructions": (KEPT_SHARE, UNCONTAMINATED),
    "candidates": (PROMPTS_ANSWERED, DIVERSITY),
    "mas_table": (
        SCORED,
        SPREAD,
        TOP_TIES,
        POSITION_BIAS,
        LENGTH_BIAS,
        SWAP_CONSISTENCY,
        SHUFFLED_IMAGE,
        KNOWN_PAIRS,
        NOT_INVERTED,
    ),
    "logprob_table": (CONFIDENCE_FINITE,),
    "preference_pairs": (PAIRS_WELL_FORMED, PAIR_YIELD),
    "lora_adapter": (WEIGHTS_FINITE, LEARNED),
    "benchmark_scores": (ANSWER_FORMAT, UNTRAINED),
}


def check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks of an asset as Dagster declares them."""
    return [
        dg.AssetCheckSpec(rule.name, asset=asset, description=rule.must_hold, blocking=rule.blocking)
        for rule in RULES.get(asset, ())
    ]


def kept_share(kept: int, dropped: int) -> Check:
    """Filters that drop most of a shard are usually a wrong setting; an empty shard is none."""
    total = kept + dropped
    return KEPT_SHARE.outcome(
        total == 0 or kept / total >= 0.5, f"{kept} of {total} records", kept=kept, dropped=dropped
    )


def uncontaminated(leaks: Sequence[Leak]) -> Check:
    """A benchmark that was trained on measures nothing; `leaks` are the kept prompts that show its images."""
    first = "; ".join(f"{leak.prompt_id}: {leak.detail}" for leak in leaks[:EXAMPLES])
    return UNCONTAMINATED.outcome(
        not leaks, f"{len(leaks)} prompts" + (f", {first}" if leaks else ""), prompts=len(leaks)
    )


def prompts_answered(answered: int, failed: int, max_failed: float) -> Check:
    """A failed prompt is counted and left out; many mean that something is wrong."""
    total = answered + failed
    share = failed / total if total else 0.0
    return PROMPTS_ANSWERED.outcome(share <= max_failed, f"{failed} of {total} failed", failed=failed, share=share)


def diversity(found: Diversity) -> Check:
    """Collapsed candidates leave nothing to prefer."""
    figures = {
        name: getattr(found, name)
        for name in ("distinct_a_prompt", "distinct_share", "mean_similarity", "truncated_share")
        if getattr(found, name) is not None
    }
    collapsed = figures.get("distinct_a_prompt", 2) < 2 or figures.get("mean_similarity", 0) > 0.9
    shown = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in figures.items()]
    return DIVERSITY.outcome(
        not collapsed and figures.get("truncated_share", 0) <= 0.1, ", ".join(shown) or "no prompts", **figures
    )


def scored(mas: pa.Table, max_unscored: float) -> Check:
    """Unscored is a status, never a number."""
    unscored = pc.sum(unscored_rows(mas)).as_py() or 0
    share = unscored / len(mas) if len(mas) else 0.0
    return SCORED.outcome(share <= max_unscored, f"{unscored} of {len(mas)} candidates unscored", unscored_share=share)


def unscored_rows(mas: pa.Table) -> pa.ChunkedArray:
    """Which rows of a MAS table lack a score that was wanted; one that could change no pair was not."""
    return pc.and_(pc.is_null(mas["mas"]), pc.not_equal(mas["status"], NOT_NEEDED))


def spread(mas: pa.Table) -> Check:
    """Prompts whose candidates score the same can give no pair; where they nearly do, confidence alone chooses it."""
    ranges = mas.group_by("prompt_id").aggregate([("mas", "max"), ("mas", "min"), ("mas", "stddev")])
    different = pc.greater_equal(pc.subtract(ranges["mas_max"], ranges["mas_min"]), LEAST_SPREAD - ROUNDING)
    share = pc.mean(pc.fill_null(different, False).cast(pa.float64())).as_py() if len(ranges) else 1.0
    sd = pc.mean(ranges["mas_stddev"]).as_py()
    within = {} if sd is None else {"mean_sd": sd}
    found = f"{share:.1%} of the prompts" + (f", mean standard deviation within one {sd:.3f}" if within else "")
    return SPREAD.outcome(share >= 0.5, found, share=share, **within)


def confidence_finite(logprobs: pa.Table) -> Check:
    """log P is a sum of logs of probabilities."""
    values = logprobs["sum_logp"].to_numpy()
    bad = int((~np.isfinite(values) | (values > 1e-6)).sum())
    return CONFIDENCE_FINITE.outcome(bad == 0, f"{bad} of {len(values)} are not", bad=bad)


def pairs_well_formed(pairs: pa.Table) -> Check:
    """A pair that trains for and against one answer, or on NaN, must not reach training."""
    same = pc.sum(pc.fill_null(pc.equal(pairs["chosen_id"], pairs["rejected_id"]), False)).as_py() or 0
    references = [pairs[name].drop_null().to_numpy() for name in ("ref_chosen_logp", "ref_rejected_logp")]
    bad = sum(int((~np.isfinite(values)).sum()) for values in references)
    return PAIRS_WELL_FORMED.outcome(
        same == 0 and bad == 0, f"{same} with equal answers, {bad} log-probs not finite", same=same, not_finite=bad
    )


def pair_yield(paired: int, dropped: int) -> Check:
    """Few prompts with a pair: the judge can't tell the candidates apart, or the candidates are all alike."""
    total = paired + dropped
    return PAIR_YIELD.outcome(total == 0 or paired / total >= 0.5, f"{paired} of {total} prompts", pairs=paired)


def weights_finite(finite: bool) -> Check:
    """A diverged training must not be benchmarked as if it were a model."""
    return WEIGHTS_FINITE.outcome(finite, "all finite" if finite else "NaN or infinity")


def learned(accuracies: list[float]) -> Check:
    """Share of the pairs whose chosen answer gained more than its rejected one, the worst seed."""
    if not accuracies:
        return LEARNED.outcome(True, "nothing was trained on pairs")
    worst = min(accuracies)
    return LEARNED.outcome(worst > 0.5, f"{worst:.1%} of the pairs for the worst seed", reward_accuracy=worst)


def answer_format(scores: pa.Table, benchmarks: Sequence[str]) -> Check:
    """A lost answer format must not be read as hallucination; `benchmarks` are those whose rules read the form."""
    rows = scores.filter(pc.and_(pc.equal(scores["metric"], "format"), pc.equal(scores["rule"], OFFICIAL))).to_pylist()
    shares = [row["value"] for row in rows if row["benchmark"] in benchmarks]
    worst = min(shares, default=100.0)
    return ANSWER_FORMAT.outcome(worst >= 90, f"{worst:.1f} % in the worst benchmark", format=worst)


def trained_on_benchmarks(images: int, hits: Sequence[str]) -> Check:
    """`images` were trained on, `hits` tell which of them are a benchmark's."""
    first = f", the first {'; '.join(hits[:EXAMPLES])}" if hits else ""
    return UNTRAINED.outcome(not hits, f"{len(hits)} of {images} images{first}", images=images, hits=len(hits))
