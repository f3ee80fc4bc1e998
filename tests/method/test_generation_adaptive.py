"""The rule of adaptive N: against equations 1 to 3 in plain Python, and its laws."""

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from m3po_dagster.method.generation.adaptive import MAX, NO_NEW_ANSWER, SETTLED, Lead, Rounds, leads, saved, settled
from m3po_dagster.method.generation.candidates import distinct
from m3po_dagster.method.generation.samples import Sample
from m3po_dagster.method.generation.settings import RoundSettings, SamplingSettings
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.study import JudgeSettings
from m3po_dagster.world.judge import JUDGE_FOLDER, SceneJudgeSettings


def said(text: str, logp: float = -1.0, cut: bool = False) -> Sample:
    return Sample(text, (1, 2), "length" if cut else "stop", (logp, 0.0))


def prompt(name: str) -> Prompt:
    return Prompt(name, JUDGE_FOLDER / "no-image.png", (Message("user", "What?"),))


def judged(text: str) -> float | None:
    """A score in [0, 1] by text; some are unscored."""
    byte = hashlib.sha256(text.encode()).digest()[0]
    return None if byte % 11 == 0 else byte / 255


def score(batch):
    return [{"mas": judged(text)} for _, texts in batch for text in texts]


SAMPLES = st.lists(
    st.builds(said, st.sampled_from("abcdefghijkl"), st.floats(-3, -0.01), st.booleans()), min_size=64, max_size=64
)
RULES = st.builds(
    RoundSettings,
    first=st.integers(1, 16),
    step=st.integers(1, 16),
    max=st.integers(16, 64),
    patience=st.integers(1, 3),
    tolerance=st.floats(0, 1),
    alpha=st.floats(0, 2),
    delta=st.floats(0, 0.5),
)


def drawn_until_stopped(samples: list[Sample], rule: RoundSettings) -> tuple[int, str]:
    """What an engine does with the rule for one prompt: the number of samples, and why it stopped."""
    rounds, drawn = Rounds([prompt("p")], rule, score), 0
    sizes = SamplingSettings(n=rule).rounds
    for number, size in enumerate(sizes, start=1):
        drawn += size
        if number == len(sizes) or not rounds([(0, samples[:drawn])])[0]:
            break
    return drawn, rounds.why_stopped(0)


def lead_by_hand(samples: list[Sample], rule: RoundSettings) -> Lead:
    """Equations 1 to 3 over the distinct answers, with their runners-up."""
    some = distinct(samples)
    scored = [one for one in some if judged(one.text) is not None]
    mas = {one.k: judged(one.text) for one in scored}
    mean = {one.k: one.sum_logp / len(one.token_ids) for one in scored}
    can_win = sorted((one.k for one in scored if one.finish_reason == "stop"), key=lambda k: (-mas[k], -mean[k], k))
    if not can_win:
        return Lead(len(some), None)
    w = can_win[0]
    s = {k: mas[w] - mas[k] - rule.alpha * max(0.0, mean[w] - mean[k] - rule.delta) for k in mas if mas[k] < mas[w]}
    losers = sorted(s, key=lambda k: (-s[k], -mean[k], k))
    if not losers:
        return Lead(len(some), None)
    next_top = mas[can_win[1]] if len(can_win) > 1 else 0.0
    next_s = s[losers[1]] if len(losers) > 1 else 0.0
    return Lead(len(some), (w, losers[0]), mas[w] - next_top, s[losers[0]] - next_s)


@settings(deadline=None)
@given(st.lists(SAMPLES.map(lambda samples: samples[:20]), min_size=1, max_size=4), RULES)
def test_leads_are_those_of_the_equations(prompts, rule):
    candidates = [distinct(samples) for samples in prompts]
    found = leads(candidates, [[judged(one.text) for one in some] for some in candidates], rule)
    for lead, samples in zip(found, prompts, strict=True):
        by_hand = lead_by_hand(samples, rule)
        assert (lead.distinct, lead.pair) == (by_hand.distinct, by_hand.pair)
        assert lead.top_gap == pytest.approx(by_hand.top_gap) and lead.s_gap == pytest.approx(by_hand.s_gap)


@settings(deadline=None)
@given(SAMPLES, RULES)
def test_never_fewer_than_first_nor_more_than_max_and_always_the_same(samples, rule):
    drawn, why = drawn_until_stopped(samples, rule)
    assert min(rule.first, rule.max) <= drawn <= rule.max
    assert (drawn, why) == drawn_until_stopped(samples, rule)
    assert why != MAX or drawn == rule.max


@settings(deadline=None)
@given(SAMPLES, RULES, st.floats(0, 1))
def test_a_larger_tolerance_never_draws_more(samples, rule, more):
    looser = rule.model_copy(update={"tolerance": rule.tolerance + more})
    assert drawn_until_stopped(samples, looser)[0] <= drawn_until_stopped(samples, rule)[0]


@settings(deadline=None)
@given(SAMPLES, RULES)
def test_more_patience_never_draws_less(samples, rule):
    patient = rule.model_copy(update={"patience": rule.patience + 1})
    assert drawn_until_stopped(samples, patient)[0] >= drawn_until_stopped(samples, rule)[0]


@pytest.mark.parametrize(
    ("history", "patience", "why"),
    [
        ([Lead(2, (0, 1), 0.2, 0.3)], 1, None),
        ([Lead(2, (0, 1), 0.2, 0.3), Lead(4, (0, 1), 0.19, 0.31)], 1, SETTLED),
        ([Lead(2, (0, 1), 0.2, 0.3), Lead(4, (0, 1), 0.1, 0.3)], 1, None),
        ([Lead(2, (0, 1), 0.2, 0.3), Lead(4, (0, 1), 0.2, 0.4)], 1, None),
        ([Lead(2, (0, 1), 0.2, 0.3), Lead(4, (0, 3), 0.2, 0.3)], 1, None),
        ([Lead(2, (0, 1), 0.2, 0.3), Lead(4, (0, 1), 0.2, 0.3)], 2, None),
        ([Lead(2, None), Lead(3, None)], 1, None),
        ([Lead(1, None), Lead(1, None)], 1, NO_NEW_ANSWER),
        ([Lead(1, None), Lead(1, None), Lead(2, (0, 9), 0.1, 0.1)], 1, None),
        ([Lead(1, None), Lead(1, None), Lead(1, None)], 2, NO_NEW_ANSWER),
        ([Lead(3, (0, 1), 0.2, 0.3), Lead(3, (0, 1), 0.2, 0.3), Lead(4, (0, 1), 0.2, 0.3)], 2, SETTLED),
    ],
)
def test_when_a_prompt_is_settled(history, patience, why):
    assert settled(history, RoundSettings(tolerance=0.02, patience=patience)) == why


def test_each_distinct_answer_is_scored_once():
    asked = []

    def counted(batch):
        asked.extend((prompt.prompt_id, text) for prompt, texts in batch for text in texts)
        return score(batch)

    rounds = Rounds([prompt("p"), prompt("q")], RoundSettings(patience=9), counted)
    p, q = [said("a"), said("b"), said("a")], [said("a"), said("c")]
    assert rounds([(0, p), (1, q)]) == [True, True]
    assert rounds([(1, [*q, said("d")]), (0, [*p, said(" b ")])]) == [True, True]
    assert asked == [("p", "a"), ("p", "b"), ("q", "a"), ("q", "c"), ("q", "d")]


def test_a_prompt_that_is_begun_again_has_its_rounds_counted_anew():
    samples = [said("a"), said("b"), said("a"), said("b")]
    rounds = Rounds([prompt("p")], RoundSettings(), score)
    assert rounds([(0, samples[:2])]) == rounds([(0, samples[:2])]) == [True]
    assert rounds([(0, samples)]) == [False]
    # Also one that had stopped.
    assert rounds([(0, samples[:2])]) == [True]
    assert rounds.why_stopped(0) == MAX


def test_with_the_worlds_own_judge_a_prompt_without_an_image_gets_all_rounds():
    """An answer that can't be scored settles nothing; the scorer says so, no number stands in for it."""
    judge = JudgeSettings(scorers=(SceneJudgeSettings(model=str(JUDGE_FOLDER)),)).build()
    rounds = Rounds([prompt("p")], RoundSettings(), judge.score)
    assert rounds([(0, [said("Yes."), said("No.")])]) == [True]
    assert rounds([(0, [said("Yes."), said("No."), said("A red circle.")])]) == [True]


def test_rounds_sum_to_max():
    assert SamplingSettings(n=RoundSettings()).rounds == (8, 8, 8, 8)
    uneven = SamplingSettings(n=RoundSettings(first=5, step=4, max=15))
    assert uneven.rounds == (5, 4, 4, 2) and uneven.most == 15
    assert SamplingSettings(n=7).rounds == (7,) and SamplingSettings(n=7).most == 7


def test_first_above_max_is_refused():
    with pytest.raises(ValidationError, match="first is 9, above max, which is 8"):
        RoundSettings(first=9, max=8)


def test_what_was_saved():
    found = saved([8, 32, 16], [80, 640, 160], 32)
    assert (found["samples"], found["samples at max"]) == (56, 96)
    assert found["share of samples saved"] == pytest.approx(40 / 96)
    assert found["tokens at max, estimated"] == 320 + 640 + 320
    assert found["share of tokens saved, estimated"] == pytest.approx(1 - 880 / 1280)
    assert saved([], [], 32)["share of samples saved"] == 0
    assert math.isfinite(saved([0], [0], 32)["share of tokens saved, estimated"])
