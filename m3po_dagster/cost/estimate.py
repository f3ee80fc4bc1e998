"""What a study over a dataset will take, before anything is spent: candidates, tokens, requests, GPU-hours, disk.

Plain arithmetic from counts, a study's settings and named assumptions; the paper's Table 7 has the authors' own hours.
"""

from dataclasses import dataclass
from math import ceil
from statistics import fmean

from m3po_dagster.cost.assumptions import Assumptions, Card, Range, exactly
from m3po_dagster.cost.model_facts import ModelFacts
from m3po_dagster.cost.plan import LocalScorer, Plan, Sampled, ServedJudge, Training
from m3po_dagster.method.alignment.estimate import REPLY_TOKENS, image_tokens
from m3po_dagster.method.alignment.judge_request import request_texts
from m3po_dagster.method.prompt import Message, Prompt

HOUR = 3600.0
_CANDIDATE_BYTES, _LOGPROB_BYTES, _MAS_BYTES = 160, 110, 160
"""A row's ids, counts and scores beside its text and its tokens."""
_TOKEN_ID_BYTES = _LOGP_BYTES = 4
"""Of each token; the digits of a log-prob are noise to a compressor."""


@dataclass(frozen=True)
class Workload:
    """What a dataset brings.

    `prompts`, and in `counted` the words for which they are; `text_bytes`: mean UTF-8 bytes of a prompt's text;
    `answer_bytes`: of the dataset's own answers, None where it has none; `sizes`: width and height of a sample of its
    images; `beside_text`: tokens of image and template by the model's own processor, None where it is not at hand.
    """

    prompts: int
    text_bytes: float
    answer_bytes: float | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    beside_text: float | None = None
    counted: str = ""


@dataclass(frozen=True)
class JudgeCost:
    """What a served judge is asked; `cost` in the currency of its prices, None without prices."""

    judge: ServedJudge
    requests: Range
    prompt_tokens: Range
    completion_tokens: Range
    cost: Range | None


@dataclass(frozen=True)
class ScorerCost:
    """What a scorer that runs here looks at: views of images, and texts of the scorer's unit."""

    scorer: LocalScorer
    images: Range
    texts: Range


@dataclass(frozen=True)
class TrainingCost:
    """GPU-hours of one adapter of a recipe, and of all its seeds."""

    training: Training
    hours_a_run: Range
    hours: Range


@dataclass(frozen=True)
class Cost:
    """The estimate. Tokens and candidates over the whole dataset; hours of one card; `disk` in bytes."""

    answer_tokens: float
    prompt_tokens: float
    candidates: Range
    generated_tokens: Range
    read_tokens: Range
    sampling_hours: Range
    scoring_hours: Range
    judges: tuple[JudgeCost, ...]
    scorers: tuple[ScorerCost, ...]
    trainings: tuple[TrainingCost, ...]
    disk: dict[str, Range]

    @property
    def gpu_hours(self) -> Range:
        """Sampling, scoring and every training run."""
        return sum((one.hours for one in self.trainings), self.sampling_hours + self.scoring_hours)


def estimate(
    plan: Plan,
    work: Workload,
    model: ModelFacts,
    card: Card,
    assumed: Assumptions,
    tokens_per_second: float | None = None,
) -> Cost:
    """The cost of a plan over a workload, on one card.

    `tokens_per_second` is a measured rate of sampling, generated tokens of all rows together; it takes the place of the
    arithmetic for that stage.
    """
    answer = answer_tokens(plan, work, assumed)
    prompt = prompt_tokens(work, assumed)
    candidates = plan.samples * work.prompts
    distinct = _distinct(plan, assumed)
    read = plan.rounds * (work.prompts * prompt)
    generated = candidates * answer
    if tokens_per_second is None:
        reading = read * (assumed.read_flops * model.parameters) / (assumed.read_utilisation * card.flops(model.bits))
        sampling = reading + _decoding(plan, work.prompts, prompt, answer, model, card, assumed)
    else:
        sampling = generated / tokens_per_second
    scored = distinct * (work.prompts * answer) + exactly(work.prompts * prompt)
    scoring = scored * (assumed.read_flops * model.parameters) / (assumed.read_utilisation * card.flops(model.bits))
    judges = plan.judges or (ServedJudge("a judge that is assumed", assumed.judge_group, None),)
    rows = distinct * work.prompts
    return Cost(
        answer_tokens=answer,
        prompt_tokens=prompt,
        candidates=candidates,
        generated_tokens=generated,
        read_tokens=read,
        sampling_hours=sampling / HOUR,
        scoring_hours=scoring / HOUR if plan.rescored else exactly(0),
        judges=tuple(_judge(judge, work, distinct, answer, assumed) for judge in judges),
        scorers=tuple(
            ScorerCost(
                one,
                exactly(work.prompts * one.views),
                rows * (max(1.0, answer / assumed.tokens_a_sentence) if one.unit == "sentences" else 1.0),
            )
            for one in plan.scorers
        ),
        trainings=tuple(
            _rlhf(one, one.sampled, work.prompts, rows, prompt, answer, model, card, assumed)
            if one.sampled
            else _training(
                one,
                _pairs(one, distinct) * (work.prompts * (prompt + answer)),
                plan.served and not plan.rescored,
                model,
                card,
                assumed,
            )
            for one in plan.trainings
        ),
        disk={
            name: rows * (assumed.compression * size + exactly(noise))
            for name, (size, noise) in {
                "candidates": (
                    answer * (assumed.bytes_a_token + _TOKEN_ID_BYTES) + _CANDIDATE_BYTES,
                    answer * _LOGP_BYTES,
                ),
                "log-probs": (_LOGPROB_BYTES, answer * _LOGP_BYTES),
                "scores": (_MAS_BYTES, 0),
            }.items()
        },
    )


def answer_tokens(plan: Plan, work: Workload, assumed: Assumptions) -> float:
    """Mean tokens of an answer: those of the dataset's own, else a share of max_new_tokens; never more than these."""
    if work.answer_bytes is None:
        return assumed.answer_share * plan.max_new_tokens
    return min(float(plan.max_new_tokens), max(1.0, work.answer_bytes / assumed.bytes_a_token))


def prompt_tokens(work: Workload, assumed: Assumptions) -> float:
    """Mean tokens of a prompt, image included."""
    beside = assumed.image_tokens + assumed.template_tokens if work.beside_text is None else work.beside_text
    return beside + work.text_bytes / assumed.bytes_a_token


def _distinct(plan: Plan, assumed: Assumptions) -> Range:
    """Distinct answers a prompt."""
    low, high = (assumed.distinct_share * plan.samples).low, (assumed.distinct_share * plan.samples).high
    return Range(max(1.0, low), max(1.0, high))


def _decoding(
    plan: Plan, prompts: int, prompt: float, answer: float, model: ModelFacts, card: Card, assumed: Assumptions
) -> Range:
    """Seconds of decoding: steps, each bound by the card's memory traffic or by its operations.

    Here the N rows of a prompt share its keys and values, and a batch goes on for its longest answer. A server fills
    its batch from all prompts; its rows may share a prompt's keys and values as they are read, or read each their own.
    """

    def here(samples: float, longest: float) -> float:
        together = min(plan.in_flight, prompts)
        steps = ceil(prompts / plan.in_flight) * answer * longest
        return steps * step(together * samples, together * prompt)

    def there(samples: float, copies: float) -> float:
        rows = min(float(assumed.server_rows), prompts * samples)
        steps = prompts * samples / max(rows, 1.0) * answer
        return steps * step(rows, rows / samples * copies * prompt)

    def step(rows: float, prompt_tokens_read: float) -> float:
        return _decoding_step(rows, prompt_tokens_read, answer, model, card, assumed)

    few, many = plan.samples.low, plan.samples.high
    if plan.served:
        return Range(there(few, 1), there(many, many)) / assumed.decode_efficiency
    # A batch can't go on for longer than it may.
    longest = max(1.0, min(assumed.longest_answer.high, plan.max_new_tokens / answer))
    return Range(here(few, assumed.longest_answer.low), here(many, longest)) / assumed.decode_efficiency


def _decoding_step(
    rows: float, prompt_tokens_read: float, answer: float, model: ModelFacts, card: Card, assumed: Assumptions
) -> float:
    """Seconds of one token of `rows` answers, half of each written, at the card's limits."""
    traffic = model.weight_bytes + model.kv_bytes_a_token * (prompt_tokens_read + rows * answer / 2)
    operations = assumed.read_flops * model.parameters * rows
    return max(traffic / card.bandwidth, operations / card.flops(model.bits))


def _judge(judge: ServedJudge, work: Workload, distinct: Range, answer: float, assumed: Assumptions) -> JudgeCost:
    image = fmean(image_tokens(*size) for size in (work.sizes or [assumed.judge_image]))
    beside, an_answer = _request_bytes()
    shared = image + (beside + work.text_bytes) / assumed.bytes_a_token
    requests = Range(*(work.prompts * ceil(n / judge.group_size) for n in (distinct.low, distinct.high)))
    graded = distinct * work.prompts
    asked = requests * shared + graded * (answer + an_answer / assumed.bytes_a_token)
    replied = graded * REPLY_TOKENS
    cost = None
    if judge.prices is not None:
        ends = ((asked.low, replied.low), (asked.high, replied.high))
        cost = Range(*(judge.prices.cost(round(given), 0, round(got)) for given, got in ends))
    return JudgeCost(judge, requests, asked, replied, cost)


def _request_bytes() -> tuple[int, int]:
    """Bytes of a judge's request beside its texts: of the whole, and a further answer's."""
    prompt = Prompt("", None, (Message("user", ""),))
    sizes = [
        sum(len(text.encode()) for text in request_texts(prompt, dict.fromkeys(ids, ""))) for ids in ("", "A", "AB")
    ]
    return sizes[0], sizes[2] - sizes[1]


def _pairs(training: Training, distinct: Range) -> Range:
    """Pairs of a prompt that gives any: no more than its distinct answers can be put into."""
    there = max(1.0, distinct.high * (distinct.high - 1) / 2)
    return Range(min(training.pairs.low, there), min(training.pairs.high, there))


def _training(
    training: Training, tokens: Range, reference: bool, model: ModelFacts, card: Card, assumed: Assumptions
) -> TrainingCost:
    """LoRA on the chosen and, for DPO, the rejected answer.

    `tokens`: of prompt and one answer, over all pairs, if every prompt gave some. A pass after training measures the
    margins. `reference`: the log-probs noted while sampling are a server's, and
    DPO's pairs are scored once more with the trainer's own numerics.
    """
    sequences = 2 if training.kind == "dpo" else 1
    operations = assumed.lora_flops + (assumed.checkpoint_flops if training.checkpointing else 0)
    seen = assumed.pair_share * tokens * (sequences * model.parameters)
    speed = assumed.train_utilisation * (card.flops(model.bits) * HOUR)
    a_run = seen * (training.epochs * operations + assumed.read_flops) / speed
    once = seen * assumed.read_flops / speed if reference and training.kind == "dpo" else exactly(0)
    return TrainingCost(training, a_run, a_run * training.runs + once)


def _rlhf(
    training: Training,
    sampled: Sampled,
    prompts: int,
    scored: Range,
    prompt: float,
    answer: float,
    model: ModelFacts,
    card: Card,
    assumed: Assumptions,
) -> TrainingCost:
    """Simulated RLHF: a reward fitted to answers that are there; then answers sampled, read and trained on.

    TRL reads the prompt anew for every answer, then both for the log-prob before the step, for the reward and, with a
    price on it, for the KL. Its rows don't share a prompt's keys and values. `scored`: answers that are there.
    """
    answer = min(answer, float(sampled.max_new_tokens))
    rows = sampled.prompts * sampled.answers
    drawn = prompts * sampled.answers * training.epochs
    longest = Range(
        assumed.longest_answer.low,
        max(1.0, min(assumed.longest_answer.high, sampled.max_new_tokens / answer)),
    )
    steps = longest * (ceil(prompts / sampled.prompts) * training.epochs * answer)
    decoding = steps * _decoding_step(rows, rows * prompt, answer, model, card, assumed) / assumed.decode_efficiency
    whole = prompt + answer
    fitted = Range(min(scored.low, sampled.reward_answers), min(scored.high, sampled.reward_answers))
    read = fitted * whole + exactly(drawn * (prompt + (2 + sampled.reference) * whole))
    reading = read * (assumed.read_flops * model.parameters) / (assumed.read_utilisation * card.flops(model.bits))
    operations = assumed.lora_flops + (assumed.checkpoint_flops if training.checkpointing else 0)
    learning = exactly(drawn * whole * operations * model.parameters) / (
        assumed.train_utilisation * card.flops(model.bits)
    )
    a_run = (decoding + reading + learning) / HOUR
    return TrainingCost(training, a_run, a_run * training.runs)
