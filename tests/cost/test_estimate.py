"""The estimate against figures worked out by hand here, and the laws that any estimate keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.cost import told
from m3po_dagster.cost.assumptions import CARDS, Assumptions, Range, exactly
from m3po_dagster.cost.estimate import Cost, Workload, estimate
from m3po_dagster.cost.model_facts import ModelFacts
from m3po_dagster.cost.plan import PAPER, LocalScorer, Plan, Sampled, ServedJudge, Training
from m3po_dagster.method.alignment.budget import PriceSettings
from m3po_dagster.method.alignment.estimate import Estimate, expected, image_tokens
from m3po_dagster.method.alignment.judge_request import request_texts
from m3po_dagster.method.alignment.turn import Spend
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.study import load_study

ROOT = Path(__file__).parents[2]
A100 = CARDS["a100"]
SEVEN_B = ModelFacts(7e9, 14e9, 16, 524_288.0, "its name", "assumed")
ASSUMED = Assumptions()
SURE = Assumptions(
    longest_answer=exactly(1),
    distinct_share=exactly(1),
    read_utilisation=exactly(0.4),
    decode_efficiency=exactly(1),
    train_utilisation=exactly(0.4),
    pair_share=exactly(1),
    compression=exactly(1),
)
"""Every range one value, so that a figure can be worked out."""
# 150,000 prompts of 613 tokens (576 of the image and 37 of text and template), answers of 100 tokens.
PAPERS = Workload(prompts=150_000, text_bytes=7 * 4, answer_bytes=400)
PLAN = replace(PAPER, trainings=(Training("m3po", "dpo", 1, 3, False), Training("sft", "sft", 1, 1, False)))


def costed(plan: Plan = PLAN, work: Workload = PAPERS, assumed: Assumptions = SURE, **more) -> Cost:
    return estimate(plan, work, SEVEN_B, A100, assumed, **more)


def only(value: Range) -> float:
    assert value.low == value.high
    return value.low


def test_tokens_of_the_papers_setting():
    cost = costed()
    assert (cost.prompt_tokens, cost.answer_tokens) == (613, 100)
    assert only(cost.candidates) == 4_800_000
    assert only(cost.generated_tokens) == 480_000_000
    assert only(cost.read_tokens) == 150_000 * 613


def test_hours_of_sampling_by_hand():
    """75,000 batches of two prompts, 100 steps each. The memory traffic of a step takes 8.0 ms, its operations 2.9."""
    reading = 2 * 7e9 * 613 * 150_000 / (0.4 * 312e12)
    traffic = 14e9 + 524_288 * (2 * 613 + 64 * 100 / 2)
    assert traffic / 2.039e12 == pytest.approx(0.0080, rel=0.01) and 2 * 7e9 * 64 / 312e12 < 0.0030
    wanted = (reading + 75_000 * 100 * traffic / 2.039e12) / 3600
    assert only(costed().sampling_hours) == pytest.approx(wanted) == pytest.approx(19.6, rel=0.01)


def test_many_prompts_in_flight_are_bound_by_operations():
    """20 prompts: 640 rows take 28.7 ms of operations and 20 ms of traffic."""
    operations = 2 * 7e9 * 640 / 312e12
    reading = 2 * 7e9 * 613 * 150_000 / (0.4 * 312e12)
    wanted = (reading + 7_500 * 100 * operations) / 3600
    assert only(costed(replace(PLAN, in_flight=20)).sampling_hours) == pytest.approx(wanted)


def test_a_server_fills_its_batch_from_all_prompts():
    """4.8 M answers of 100 steps, 256 at once: those of 8 prompts, whose keys and values rows share, or read each."""

    def wanted(prompts_read: int) -> float:
        traffic = 14e9 + 524_288 * (prompts_read * 613 + 256 * 100 / 2)
        step = max(traffic / 2.039e12, 2 * 7e9 * 256 / 312e12)
        reading = 2 * 7e9 * 613 * 150_000 / (0.4 * 312e12)
        return (reading + 4_800_000 / 256 * 100 * step) / 3600

    found = costed(replace(PLAN, served=True)).sampling_hours
    assert found.low == pytest.approx(wanted(8)) and found.high == pytest.approx(wanted(256))


def test_a_measured_rate_takes_the_place_of_the_arithmetic():
    assert only(costed(tokens_per_second=4000).sampling_hours) == pytest.approx(480e6 / 4000 / 3600)


def test_hours_of_training_by_hand():
    """DPO reads both answers with the prompt: 4 operations a parameter and token, and 2 for the margins after."""
    dpo, sft = costed().trainings
    tokens = 150_000 * 2 * 713
    assert only(dpo.hours_a_run) == pytest.approx(tokens * 7e9 * (4 + 2) / (0.4 * 312e12) / 3600)
    assert only(dpo.hours) == pytest.approx(3 * only(dpo.hours_a_run))
    assert only(sft.hours) == pytest.approx(only(dpo.hours_a_run) / 2)
    checkpointed = replace(PLAN, trainings=(Training("m3po", "dpo", 2, 1, True),))
    (twice,) = costed(checkpointed).trainings
    assert only(twice.hours) == pytest.approx(tokens * 7e9 * (2 * 6 + 2) / (0.4 * 312e12) / 3600)


SEVERAL = Training("margin_pairs", "dpo", 1, 2, False, pairs=Range(1, 3))


def test_a_rule_that_takes_several_pairs_of_a_prompt_trains_on_them_all():
    one, several = costed(replace(PLAN, trainings=(replace(SEVERAL, pairs=exactly(1)), SEVERAL))).trainings
    assert several.hours_a_run.low == pytest.approx(only(one.hours_a_run))
    assert several.hours_a_run.high == pytest.approx(3 * only(one.hours_a_run))
    assert several.hours.high == pytest.approx(6 * only(one.hours_a_run))
    said = told.assumptions(replace(PLAN, trainings=(SEVERAL,)), PAPERS, SEVEN_B, A100, SURE, None)
    assert said["pairs of a prompt"] == "1, but 1 to 3 for margin_pairs"
    assert "pairs of a prompt" not in told.assumptions(PLAN, PAPERS, SEVEN_B, A100, SURE, None)


@pytest.mark.parametrize(("samples", "most"), [(1, 1), (2, 1), (4, 6), (32, 100)])
def test_no_more_pairs_than_the_answers_can_be_put_into(samples, most):
    """Four answers make six pairs, whatever max_pairs allows."""
    many = replace(SEVERAL, pairs=Range(1, 100))
    plan = replace(PLAN, samples=exactly(samples), trainings=(replace(SEVERAL, pairs=exactly(1)), many))
    one, several = costed(plan).trainings
    assert several.hours_a_run.high == pytest.approx(most * only(one.hours_a_run))


RLHF = Training("rlhf", "rlhf", 1, 2, False, Sampled(8, 4, 512, reward_answers=25_000, reference=True))


def test_hours_of_simulated_rlhf_by_hand():
    """Four answers to each prompt: decoded, read four times beside, trained on; 25,000 stored ones read once."""
    (cost,) = costed(replace(PLAN, trainings=(RLHF,))).trainings
    rows, drawn = 8 * 4, 150_000 * 4
    step = max((14e9 + 524_288 * rows * (613 + 100 / 2)) / 2.039e12, 2 * 7e9 * rows / 312e12)
    read = drawn * (613 + 3 * 713) + 25_000 * 713
    seconds = 150_000 / 8 * 100 * step + (read * 2 + drawn * 713 * 4) * 7e9 / (0.4 * 312e12)
    assert only(cost.hours_a_run) == pytest.approx(seconds / 3600)
    assert only(cost.hours) == pytest.approx(2 * seconds / 3600)
    free = replace(RLHF, sampled=replace(RLHF.sampled, reference=False))
    (cheaper,) = costed(replace(PLAN, trainings=(free,))).trainings
    saved = drawn * 713 * 2 * 7e9 / (0.4 * 312e12)
    assert only(cost.hours_a_run) - only(cheaper.hours_a_run) == pytest.approx(saved / 3600)


def test_a_servers_log_probs_are_no_reference_so_the_pairs_are_scored_once():
    here, there = costed().trainings, costed(replace(PLAN, served=True)).trainings
    scored = 150_000 * 2 * 713 * 7e9 * 2 / (0.4 * 312e12) / 3600
    assert only(there[0].hours) == pytest.approx(only(here[0].hours) + scored)
    assert there[1] == here[1]  # SFT compares nothing


def test_log_probs_cost_nothing_unless_they_are_scored_again():
    assert costed().scoring_hours == exactly(0)
    rescored = costed(replace(PLAN, rescored=True)).scoring_hours
    tokens = 150_000 * (613 + 32 * 100)
    assert only(rescored) == pytest.approx(tokens * 2 * 7e9 / (0.4 * 312e12) / 3600)


def test_a_judges_tokens_are_those_that_judging_itself_expects():
    """Groups of 8 of 32 answers of 400 bytes: four requests a prompt, as `expected` counts one."""
    prices = PriceSettings(input=2.5, output=10)
    plan = replace(PLAN, judges=(ServedJudge("judge", 8, prices),))
    work = Workload(prompts=10, text_bytes=28, answer_bytes=400, sizes=((640, 480), (1024, 1024)))
    (judge,) = costed(plan, work).judges
    prompt = Prompt("p", None, (Message("user", "q" * 28),))
    answers = dict.fromkeys("ABCDEFGH", "a" * 400)
    one = [expected(request_texts(prompt, answers), *size, 8, prices, Spend()) for size in work.sizes]
    total = Estimate.of([spend for spend in one for _ in range(5 * 4)], 0, prices, Spend())
    assert only(judge.requests) == total.spend.requests == 40
    assert only(judge.prompt_tokens) == pytest.approx(total.spend.prompt_tokens, rel=2e-3)
    assert only(judge.completion_tokens) == total.spend.completion_tokens
    assert only(judge.cost) == pytest.approx(total.spend.cost, rel=2e-3)


@pytest.mark.parametrize(("share", "group", "requests"), [(1, 8, 4), (0.35, 8, 2), (0.25, 8, 1), (1, 5, 7), (1, 1, 32)])
def test_requests_of_a_prompt_are_whole(share, group, requests):
    plan = replace(PLAN, judges=(ServedJudge("judge", group, None),))
    cost = costed(plan, replace(PAPERS, prompts=100), SURE.model_copy(update={"distinct_share": exactly(share)}))
    assert only(cost.judges[0].requests) == 100 * requests and cost.judges[0].cost is None


def test_without_a_judge_one_is_assumed_and_said():
    (judge,) = costed().judges
    assert judge.judge.group_size == 8 and "assumed" in judge.judge.name
    said = told.assumptions(PLAN, PAPERS, SEVEN_B, A100, SURE, None)
    assert "no served judge" in said["judge"]


def test_scorers_that_run_here():
    plan = replace(
        PLAN, scorers=(LocalScorer("clip", "clip", 5, "sentences"), LocalScorer("reward", "reward_model", 1, "answers"))
    )
    clip, reward = costed(plan).scorers
    assert only(clip.images) == 750_000 and only(clip.texts) == 4_800_000 * 5
    assert only(reward.images) == 150_000 and only(reward.texts) == 4_800_000


def test_disk_is_the_tables_rows():
    cost = costed()
    assert only(cost.disk["candidates"]) == 4_800_000 * (100 * (4 + 4 + 4) + 160)
    assert only(cost.disk["log-probs"]) == 4_800_000 * (100 * 4 + 110)


def test_an_answer_is_the_datasets_own_or_a_share_of_the_most():
    assert costed(work=replace(PAPERS, answer_bytes=None)).answer_tokens == 256
    assert costed(work=replace(PAPERS, answer_bytes=1e6)).answer_tokens == 512
    assert costed(work=replace(PAPERS, answer_bytes=0)).answer_tokens == 1


def test_a_models_own_tokens_take_the_place_of_llavas():
    assert costed(work=replace(PAPERS, beside_text=1000.0)).prompt_tokens == 1007


def test_thirty_two_bits_are_slower():
    single = replace(SEVEN_B, bits=32)
    slow = estimate(PLAN, PAPERS, single, A100, SURE).trainings[0].hours
    assert only(slow) == pytest.approx(only(costed().trainings[0].hours) * 312 / 19.5)


def test_the_papers_plan_is_that_of_its_study():
    study = load_study(ROOT / "studies" / "llava15_7b.yaml")
    assert Plan.of(study) == replace(PAPER, name="llava15_7b")


def test_recipes_that_come_to_the_same_training_are_paid_once():
    study = load_study(ROOT / "studies" / "llava15_7b.yaml")
    ablation = study.recipes["m3po_alpha0"]
    wider = ablation.selection.model_copy(update={"delta": 0.3})
    twin = ablation.model_copy(update={"selection": wider, "seeds": (2, 3)})
    plan = Plan.of(study.model_copy(update={"recipes": {**study.recipes, "twin": twin}}))
    runs = {training.recipe: training.runs for training in plan.trainings}
    assert "twin" not in runs and runs["m3po_alpha0"] == 4 and runs["m3po"] == 3


def test_the_most_pairs_of_a_prompt_are_those_of_the_recipes_rule():
    study = load_study(ROOT / "studies" / "llava15_7b_tables.yaml")
    rival = study.recipes["margin_pairs"]
    wider = rival.model_copy(update={"selection": rival.selection.model_copy(update={"max_pairs": 5})})
    plan = Plan.of(study.model_copy(update={"recipes": {**study.recipes, "wider": wider}}))
    pairs = {training.recipe: training.pairs for training in plan.trainings}
    assert pairs.pop("margin_pairs") == Range(1, 2) and pairs.pop("wider") == Range(1, 5)
    assert set(pairs.values()) == {exactly(1)}


def test_a_study_with_a_judge_rounds_and_a_server():
    study = load_study(ROOT / "studies" / "llava15_7b_judged.yaml")
    (judge,) = Plan.of(study).judges
    assert (judge.name, judge.group_size, judge.at_most) == ("llm_judge", 8, False)
    assert judge.prices == PriceSettings(input=0, output=0)


counts = st.integers(1, 10_000)
works = st.builds(
    Workload,
    prompts=counts,
    text_bytes=st.floats(0, 1e5),
    answer_bytes=st.none() | st.floats(0, 1e5),
    sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=3).map(tuple),
    beside_text=st.none() | st.floats(1, 1e5),
)
plans = st.builds(
    replace,
    st.just(PLAN),
    samples=st.integers(1, 64).map(exactly),
    in_flight=st.integers(1, 64),
    served=st.booleans(),
    rescored=st.booleans(),
    max_new_tokens=st.integers(1, 2048),
    trainings=st.just(PLAN.trainings) | st.just((RLHF,)) | st.just((SEVERAL,)),
    judges=st.just(()) | st.just((ServedJudge("judge", 8, PriceSettings(input=1, output=2)),)),
)


def figures(cost: Cost) -> list[Range]:
    """All that a study pays for."""
    ranges = [cost.candidates, cost.generated_tokens, cost.read_tokens, cost.sampling_hours, cost.scoring_hours]
    ranges += [cost.gpu_hours, *cost.disk.values()]
    for judge in cost.judges:
        ranges += [judge.requests, judge.prompt_tokens, judge.completion_tokens, *([judge.cost] if judge.cost else [])]
    for scorer in cost.scorers:
        ranges += [scorer.images, scorer.texts]
    return ranges


def never_less(less: Cost, more: Cost) -> None:
    for before, after in zip(figures(less), figures(more), strict=True):
        assert after.low >= before.low * (1 - 1e-9) and after.high >= before.high * (1 - 1e-9)


@given(plans, works, counts)
def test_more_prompts_never_cost_less(plan, work, more):
    never_less(costed(plan, work, ASSUMED), costed(plan, replace(work, prompts=work.prompts + more), ASSUMED))


@given(plans, works, st.integers(1, 64))
def test_more_samples_never_cost_less(plan, work, more):
    larger = replace(plan, samples=exactly(plan.samples.low + more))
    never_less(costed(plan, work, ASSUMED), costed(larger, work, ASSUMED))


@given(plans, works, st.floats(1, 1e4))
def test_longer_prompts_never_cost_less(plan, work, more):
    never_less(costed(plan, work, ASSUMED), costed(plan, replace(work, text_bytes=work.text_bytes + more), ASSUMED))


@given(plans, works)
def test_an_adaptive_n_lies_between_its_first_round_and_its_most(plan, work):
    low, high = plan.samples.low, plan.samples.high + 7
    between = costed(replace(plan, samples=Range(low, high)), work, ASSUMED)
    least, most = (costed(replace(plan, samples=exactly(n)), work, ASSUMED) for n in (low, high))
    for one, first, last in zip(*map(figures, (between, least, most)), strict=True):
        assert one.low == pytest.approx(first.low) and one.high == pytest.approx(last.high)


@given(st.floats(1e-9, 1e15))
def test_what_is_told_has_three_digits(value):
    assert told.rounded(value) == pytest.approx(value, rel=6e-3)
    assert len(f"{told.rounded(value):.15e}".split("e")[0].rstrip("0").replace(".", "")) <= 3


def test_every_assumption_that_counts_is_told():
    said = told.assumptions(PLAN, PAPERS, SEVEN_B, A100, ASSUMED, None)
    assert "312 TFLOP/s in 16 bits" in said["card"] and "its name" in said["parameters"]
    for name in ("decode_efficiency", "read_utilisation", "train_utilisation", "distinct_share", "longest_answer"):
        value = getattr(ASSUMED, name)
        assert said[name].startswith(f"{value.low:g} to {value.high:g}: ")
    mine = told.assumptions(PLAN, PAPERS, SEVEN_B, A100, ASSUMED, 4000)
    assert "4000" in mine["sampling"] and "decode_efficiency" not in mine


def test_a_range_goes_from_low_to_high():
    with pytest.raises(ValueError, match="from low to high"):
        Range(2, 1)
    assert Range(1, 2) + Range(3, 5) == Range(4, 7) and Range(1, 2) * 3 == Range(3, 6)
    assert Range(6, 12) / Range(2, 3) == Range(2, 6)


def test_an_image_of_a_judge_is_the_sample_s_mean():
    work = replace(PAPERS, prompts=1, sizes=((640, 480), (2000, 1000)))
    larger = costed(work=work).judges[0].prompt_tokens.low
    smaller = costed(work=replace(work, sizes=((640, 480),))).judges[0].prompt_tokens.low
    assert larger - smaller == pytest.approx(4 * (image_tokens(2000, 1000) - image_tokens(640, 480)) / 2)
