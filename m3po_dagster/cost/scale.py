"""How a study grows with its prompts: shards, time on so many cards, memory, storage, requests, money.

Arithmetic over `estimate`. What needs no GPU is from measurements (`Measured`), what needs one from assumptions; the
paper's Table 7 has the authors' own hours for one size.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil

from m3po_dagster.cost.assumptions import Assumptions, Range, exactly
from m3po_dagster.cost.deployment import Deployment, Measured
from m3po_dagster.cost.estimate import Cost, Workload
from m3po_dagster.cost.plan import Plan

MOST_SHARDS, MOST_PARTS = 99, 100_000
"""Dagster tells no staleness over 100 or more partitions of an input; a part's number has five digits."""
WEEK = 7 * 24  # hours
GB = 1e-9
ASSETS_A_SHARD, FILES_A_TABLE = 4, 3
"""filtered_instructions, candidates, mas_table, logprob_table; two tables and a manifest each."""


@dataclass(frozen=True)
class JudgeLoad:
    """What a served judge's ledger holds, and requests a second so that it keeps pace with sampling."""

    name: str
    ledger_gb: Range
    index_gb: Range
    requests_a_second: Range


@dataclass(frozen=True)
class Scale:
    """A study at one size on one deployment. Hours, GB, money; `shards` are those asked for or those that fit."""

    prompts: int
    shards: int
    prompts_a_shard: int
    shard_hours: Range
    parts_a_shard: Range
    shard_memory_gb: Range
    answering_hours: Range
    training_hours: Range
    longest_training: Range  # of DPO or SFT, which several processes can share
    longest_rlhf: Range  # which they can't
    gpu_money: Range | None
    storage_gb: Range
    storage_month: Range
    artifacts: int
    writes: Range
    reads: Range
    request_money: Range
    loads: tuple[JudgeLoad, ...]
    event_log_gb: float
    inspector_gb: Range
    inspector_minutes: Range
    images_first_hours: Range
    images_again_minutes: float
    images_memory_gb: float


def scaled(
    plan: Plan,
    work: Workload,
    cost: Cost,
    assumed: Assumptions,
    on: Deployment,
    measured: Measured,
    shards: int | None = None,
) -> Scale:
    """The study at the workload's size. Without `shards` the fewest whose fullest step fits into the memory.

    Every image is taken to belong to one prompt. Hours of answering (sampling and a pass for log-probs) are those on
    the clock: whole shards on whole cards. Trainings are runs of one card each.
    """
    rows = assumed.distinct_share * plan.samples
    row = cost.answer_tokens * (assumed.bytes_a_token + 8) + measured.row_bytes
    memory = rows * (row * measured.memory_of_bytes * work.prompts * GB)
    if shards is None:
        # A multiple of the cards, so that none waits while the last ones work.
        shards = min(MOST_SHARDS, work.prompts, on.cards * max(1, ceil(memory.high / on.memory_gb / on.cards)))
    answering = cost.sampling_hours + cost.scoring_hours
    shard_hours = answering / shards
    parts = shard_hours * (3600 / on.part_seconds)
    recipes, runs = len(plan.trainings), sum(one.training.runs for one in cost.trainings)
    training = sum((one.hours for one in cost.trainings), exactly(0))
    longest, longest_rlhf = _longest(cost, ("dpo", "sft")), _longest(cost, ("rlhf",))
    shared = training / min(on.cards, max(1, runs))
    storage = sum(cost.disk.values(), exactly(0)) * GB + _pairs_and_prompts(work.prompts, recipes, assumed, measured)
    artifacts = shards * (ASSETS_A_SHARD + recipes) + 2 * recipes + runs
    writes = parts * shards + exactly(artifacts * FILES_A_TABLE)
    # An image is opened to sample, by every scorer that looks, to score again, and by every training.
    looks = 1 + sum(one.views > 0 for one in plan.scorers) + len(plan.judges) + plan.rescored
    reads = exactly(work.prompts * looks + artifacts * FILES_A_TABLE) + assumed.pair_share * (work.prompts * runs)
    candidates = rows * work.prompts
    return Scale(
        prompts=work.prompts,
        shards=shards,
        prompts_a_shard=ceil(work.prompts / shards),
        shard_hours=shard_hours,
        parts_a_shard=parts,
        shard_memory_gb=memory / shards,
        answering_hours=shard_hours * ceil(shards / on.cards),
        training_hours=Range(
            max(shared.low, longest.low, longest_rlhf.low), max(shared.high, longest.high, longest_rlhf.high)
        ),
        longest_training=longest,
        longest_rlhf=longest_rlhf,
        gpu_money=None if on.gpu_hour is None else cost.gpu_hours * on.gpu_hour,
        storage_gb=storage,
        storage_month=storage * on.storage_month,
        artifacts=artifacts,
        writes=writes,
        reads=reads,
        request_money=writes * (on.thousand_writes / 1000) + reads * (on.thousand_reads / 1000),
        loads=tuple(
            JudgeLoad(
                one.judge.name,
                one.requests * (measured.reply_bytes * GB),
                one.requests * (measured.reply_memory * GB),
                one.requests / (answering / min(on.cards, shards) * 3600),
            )
            for one in cost.judges
            if plan.judges
        ),
        event_log_gb=_event_log(shards, recipes, measured),
        inspector_gb=candidates * (measured.inspector_memory * GB),
        inspector_minutes=candidates * (measured.inspector_us / 60e6),
        images_first_hours=measured.image_ms * (work.prompts / 3.6e6),
        images_again_minutes=work.prompts * measured.image_us / 60e6,
        images_memory_gb=work.prompts * measured.image_memory * GB,
    )


def _longest(cost: Cost, kinds: Collection[str]) -> Range:
    """Hours of the longest run of these kinds; 0 for none."""
    runs = [one.hours_a_run for one in cost.trainings if one.training.kind in kinds]
    return Range(max((run.low for run in runs), default=0.0), max((run.high for run in runs), default=0.0))


def _pairs_and_prompts(prompts: int, recipes: int, assumed: Assumptions, measured: Measured) -> Range:
    pairs = assumed.pair_share * (prompts * recipes * measured.pair_bytes)
    return (pairs + exactly(prompts * measured.filtered_bytes)) * GB


def _event_log(shards: int, recipes: int, measured: Measured) -> float:
    """GB: an event a part, a run a partition of what is made together."""
    events = shards * (ASSETS_A_SHARD + recipes) + 3 * recipes
    runs = shards * (1 + recipes) + 2 * recipes
    return (events * measured.event_kb + runs * measured.run_kb) * 1e3 * GB


def limits(scale: Scale, on: Deployment) -> list[str]:
    """What this size runs into on this deployment, each with what to do; empty when nothing is in the way."""
    found = []
    if scale.shard_memory_gb.high > on.memory_gb:
        found.append(
            f"a shard of {scale.prompts_a_shard:,} prompts takes up to {scale.shard_memory_gb.high:.3g} GB of memory "
            f"while it is put together, {on.memory_gb:g} GB are there: more shards (at most {MOST_SHARDS}), more "
            "memory, or a study for every part of the dataset"
        )
    if scale.shards > MOST_SHARDS:
        found.append(f"{scale.shards} shards: Dagster shows no staleness over an input of more than {MOST_SHARDS}")
    if scale.parts_a_shard.high > MOST_PARTS:
        found.append(f"a shard has up to {scale.parts_a_shard.high:,.0f} parts, {MOST_PARTS:,} can be numbered")
    if on.cards > scale.shards:
        found.append(
            f"{on.cards - scale.shards} of {on.cards} cards have no shard to answer: a shard is one process's work"
        )
    if scale.longest_training.high > WEEK:
        found.append(
            f"the longest training takes {scale.longest_training.low:,.0f} to {scale.longest_training.high:,.0f} hours "
            "on one card: use several processes (trainer.processes), or fewer pairs (a larger selection.min_gap)"
        )
    if scale.longest_rlhf.high > WEEK:
        found.append(
            f"simulated RLHF takes {scale.longest_rlhf.low:,.0f} to {scale.longest_rlhf.high:,.0f} hours a run and "
            "trains in one process: leave the recipe out (`NAME: null`), or give it a study over fewer prompts"
        )
    for judge in scale.loads:
        if judge.index_gb.high > 4:
            found.append(
                f"the ledger of {judge.name} is {judge.ledger_gb.high:.3g} GB and every process that asks holds up to "
                f"{judge.index_gb.high:.3g} GB of it: larger groups, or a study for every part of the dataset"
            )
    if scale.inspector_gb.high > on.memory_gb:
        found.append(f"the inspector needs up to {scale.inspector_gb.high:.3g} GB: show it fewer shards")
    if scale.images_again_minutes > 1:
        found.append(
            f"a look whether images changed takes {scale.images_again_minutes:.3g} minutes, at every tick of the "
            "sensors and every `m3po status`: give them time (DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS) or keep them off"
        )
    return found
