"""Checks of a shard's judge: what its scores depend on beside the answers' quality, and whether it is right at all.

A bias warns when its interval lies wholly beyond the bound, so that chance alone rarely warns; a judge must show that
it sees the image and knows better from worse. Only a judge that has known pairs the wrong way round blocks: training on
it would teach the worse answers, whatever comes after.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import (
    KNOWN_PAIRS,
    LENGTH_BIAS,
    NOT_INVERTED,
    POSITION_BIAS,
    PROBE_ORDER,
    SHUFFLED_IMAGE,
    SWAP_CONSISTENCY,
    TOP_TIES,
    Check,
)
from m3po_dagster.method.alignment.cascade import NOT_NEEDED
from m3po_dagster.method.alignment.intervals import Interval, share_interval
from m3po_dagster.method.alignment.judge_bias import (
    Groups,
    by_prompt,
    flipped,
    longer_wins,
    mean_fall,
    place_correlations,
    rank_correlation,
    top_ties,
)
from m3po_dagster.method.alignment.mas import MasSettings
from m3po_dagster.method.alignment.quality import FEWEST_PROMPTS, Controls

MOST_AT_THE_TOP = 0.5
"""Integer grades tie the top of nine prompts in ten, which the confidence then breaks; when half of the answers tie,
MAS no longer chooses."""
PLACE_BOUND = 0.1
"""A hundredth of the variance of ranks: below it place decides less than one grade in a hundred."""
LONGER_BOUND = 0.6
"""About halfway from none (0.5) to the 0.68 that GPT-4-style judges are known for."""
FLIP_BOUND = 0.13
"""The share of verdicts that GPT-4-style judges are known to turn over."""
KNOWN_BOUND = 0.75
"""Halfway from a coin to always right."""
FEWEST_FOR_BIAS = 20
"""Prompts below which a shard says nothing of a preference: with fewer, chance alone can look unanimous."""
PLACES = {"place": "the place", "ends": "its distance from the middle"}
STRICT, ONE_SIDED = 0.99, 0.90
"""Levels: of a bias that is looked for in many shards, of a two-sided interval whose lower end holds with 95 %."""


def judge_checks(table: pa.Table, candidates: pa.Table, controls: Controls, judge: MasSettings) -> tuple[Check, ...]:
    """What a shard's MAS table and the controls show of its judge, one check a rule.

    `candidates` has candidate_id and n_tokens of the table's answers. A check that has nothing to look at passes and
    says so.
    """
    groups = by_prompt(table["prompt_id"].to_pylist())
    place_of = pc.index_in(table["candidate_id"], value_set=candidates["candidate_id"].combine_chunks())
    n_tokens = _numbers(candidates["n_tokens"].take(place_of))
    return (
        _top_ties(table, groups),
        _position_bias(table, groups),
        _length_bias(table, groups, n_tokens),
        _swap_consistency(table, groups, controls, judge),
        _shuffled_image(table, groups, controls, judge),
        *_known_pairs(controls, judge),
    )


def probe_order(answers: pa.Table) -> Check:
    """Whether the scorers know right from wrong where that is plain: the probe's own cases, asked anyway.

    `answers` are the rows of judge_probe. A case that could not be scored is not in order.
    """
    values = {(row["scorer"], *row["case"].split(":")): row["value"] for row in answers.to_pylist()}
    scorers, figures = sorted({scorer for scorer, _, _ in values}), {}
    images = sorted({image for _, image, _ in values})
    for scorer in scorers:
        for worse in ("wrong", "half"):
            pairs = [(values[scorer, image, "right"], values[scorer, image, worse]) for image in images]
            figures[f"{scorer}_above_{worse}"] = sum(None not in pair and pair[0] > pair[1] for pair in pairs)
    said = [
        f"{scorer} has right above wrong for {figures[f'{scorer}_above_wrong']} of {len(images)}, "
        f"above half right for {figures[f'{scorer}_above_half']}"
        for scorer in scorers
    ]
    enough = all(4 * figures[f"{scorer}_above_wrong"] >= 3 * len(images) for scorer in scorers)
    return PROBE_ORDER.outcome(enough, "; ".join(said) or "no scorer is served", **figures)


def _top_ties(table: pa.Table, groups: Groups) -> Check:
    tied, share = top_ties(groups, _numbers(table["mas"]))
    if share.n < 2:
        return TOP_TIES.outcome(True, "fewer than two prompts with two scored answers")
    found = f"{share.value:.1%}; the best MAS is tied in {tied.value:.1%} of the prompts"
    return TOP_TIES.outcome(share.value <= MOST_AT_THE_TOP, found, top_share=share.value, tied_share=tied.value)


def _position_bias(table: pa.Table, groups: Groups) -> Check:
    placed = [name for name in table.column_names if f"{name}_position" in table.column_names]
    shown = [name for name in placed if (pc.max(table[f"{name}_position"]).as_py() or 0) > 1]
    if not shown:
        return POSITION_BIAS.outcome(True, "no scorer is shown several answers at once")
    if NOT_NEEDED in pc.unique(table["status"]).to_pylist():
        return POSITION_BIAS.outcome(
            True, "not measured: a cascade asks about the most promising answers first, so places are not chance"
        )
    beyond, said, figures = False, [], {}
    for name in shown:
        value, place = _numbers(table[name]), _numbers(table[f"{name}_position"])
        for what, one in place_correlations(groups, value, place, STRICT).items():
            if one.n >= FEWEST_FOR_BIAS:
                beyond |= one.low > PLACE_BOUND or one.high < -PLACE_BOUND
                said.append(f"{name} with {PLACES[what]} {_signed(one)}")
                figures |= _figures(f"{name}_{what}", one)
    return POSITION_BIAS.outcome(
        not beyond,
        ", ".join(said) or f"fewer than {FEWEST_FOR_BIAS} prompts whose scores and places vary",
        **figures,
    )


def _length_bias(table: pa.Table, groups: Groups, n_tokens: np.ndarray) -> Check:
    mas = _numbers(table["mas"])
    wins, correlation = longer_wins(groups, mas, n_tokens, STRICT), rank_correlation(groups, mas, n_tokens, STRICT)
    if wins.n < FEWEST_FOR_BIAS:
        return LENGTH_BIAS.outcome(True, f"fewer than {FEWEST_FOR_BIAS} prompts whose MAS and lengths vary")
    return LENGTH_BIAS.outcome(
        wins.low <= LONGER_BOUND,
        f"{_percent(wins)}; rank correlation of MAS with the number of tokens {_signed(correlation)}",
        **_figures("longer_wins", wins),
        **_figures("correlation", correlation),
    )


def _swap_consistency(table: pa.Table, groups: Groups, controls: Controls, judge: MasSettings) -> Check:
    if not controls.swapped:
        why = ": under a cascade a request's answers are those of its round" if judge.cascade else ""
        return SWAP_CONSISTENCY.outcome(True, f"not asked{why}")
    passed, said, figures = True, [], {}
    for name in (scorer.name for scorer in judge.assessors if scorer.served):
        first, second = _numbers(table[name]), _again(table, controls.swapped, name)
        share = flipped(groups, first, second, ONE_SIDED)
        if share.n < FEWEST_PROMPTS:
            said.append(f"{name}: orders in {share.n} prompts only, too few to tell")
            continue
        difference = float(np.nanmean(np.abs(first - second)))
        passed &= share.low <= FLIP_BOUND
        said.append(f"{name} {_percent(share)} in {share.n} prompts, mean difference {difference:.3f}")
        figures |= _figures(f"{name}_flipped", share) | {f"{name}_difference": difference}
        figures[f"{name}_unscored"] = _lost(first, second, table, controls.swapped)
    return SWAP_CONSISTENCY.outcome(passed, ", ".join(said), **figures)


def _shuffled_image(table: pa.Table, groups: Groups, controls: Controls, judge: MasSettings) -> Check:
    if not controls.shuffled:
        return SHUFFLED_IMAGE.outcome(True, "not asked")
    passed, said, figures = True, [], {}
    looking = {scorer.name: scorer.weight > 0 for scorer in judge.scorers if scorer.looks_at_image}
    for name, enters in looking.items():
        before, after = _numbers(table[name]), _again(table, controls.shuffled, name)
        fall = mean_fall(groups, before, after, ONE_SIDED)
        if fall.n < FEWEST_PROMPTS:
            said.append(f"{name}: scores of {fall.n} prompts only, too few to tell")
            continue
        passed &= fall.low > 0 or not enters
        said.append(f"{name} falls by {fall.value:.3f} [{fall.low:.3f}, {fall.high:.3f}] over {fall.n} prompts")
        figures |= _figures(f"{name}_fall", fall) | {f"{name}_unscored": _lost(before, after, table, controls.shuffled)}
    return SHUFFLED_IMAGE.outcome(passed, ", ".join(said) or "no scorer looks at the image", **figures)


def _known_pairs(controls: Controls, judge: MasSettings) -> tuple[Check, Check]:
    if not controls.known:
        none = "the study names no known pairs (judge.quality.known_pairs)"
        return KNOWN_PAIRS.outcome(True, none), NOT_INVERTED.outcome(True, none)
    scored = [one for one in controls.known if one[1]["mas"] is not None and one[2]["mas"] is not None]
    if not scored:
        none = f"none of {len(controls.known)} pairs could be scored"
        return KNOWN_PAIRS.outcome(False, none), NOT_INVERTED.outcome(True, none)
    right, tied = _order(scored, "mas")
    share, unscored = (right + tied / 2) / len(scored), len(controls.known) - len(scored)
    found = f"{right} of {len(scored)} right, {tied} tied (a tie counts half), {unscored} unscored"
    figures = {"share": share, "pairs": len(scored), "tied": tied, "unscored": unscored}
    for name in (scorer.name for scorer in judge.scorers):
        known = [one for one in scored if one[1][name] is not None and one[2][name] is not None]
        if known:
            ordered, level = _order(known, name)
            figures[f"{name}_share"] = (ordered + level / 2) / len(known)
    # Pairs of one image are hardly independent: the interval counts images.
    images = len({pair.prompt.image_path for pair, _, _ in scored})
    inverted = share_interval(share * images, images, STRICT).high < 0.5
    return (
        KNOWN_PAIRS.outcome(share >= KNOWN_BOUND, f"{share:.1%}: {found}", **figures),
        NOT_INVERTED.outcome(
            not inverted, f"{share:.1%} the right way round, {images} images", share=share, images=images
        ),
    )


def _order(pairs: Sequence[tuple], name: str) -> tuple[int, int]:
    """How many pairs a column has the right way round, and how many it ties."""
    differences = [better[name] - worse[name] for _, better, worse in pairs]
    return sum(one > 0 for one in differences), sum(one == 0 for one in differences)


def _again(table: pa.Table, rows: Mapping[str, Mapping], name: str) -> np.ndarray:
    """A scorer's values when asked again, NaN for what was not asked or not scored."""
    found = [rows.get(key, {}).get(name) for key in table["candidate_id"].to_pylist()]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _lost(first: np.ndarray, second: np.ndarray, table: pa.Table, rows: Mapping[str, Mapping]) -> int:
    """Answers asked about again that one of the two askings could not score."""
    asked = np.array([key in rows for key in table["candidate_id"].to_pylist()])
    return int((asked & (np.isnan(first) | np.isnan(second))).sum())


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


def _signed(one: Interval) -> str:
    return f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}] over {one.n} prompts"


def _percent(one: Interval) -> str:
    return f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]"


def _figures(name: str, one: Interval) -> dict[str, float]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
