"""The job `everything` on a cluster: the shards in groups, a recipe each, every step where the deployment says.

    look -> sample[group] -> score[group] -> log_probs[group] -> select -> train[recipe] -> benchmark[recipe] -> report

A group is one process on one node for each kind of step, so a model is loaded once for all its shards, and each kind of
step gets its own GPUs. What a step finds up to date it leaves alone: a step that is started again after its node was
lost goes on where the first stood.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import dagster as dg

from m3po_dagster.automation.selected import Choice, refuse_unknown, run_selection
from m3po_dagster.current import held_heads
from m3po_dagster.deployment import Deployment, Kind
from m3po_dagster.graph import STAGES, standings
from m3po_dagster.resources import gpu
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.runner import Selection
from m3po_dagster.study import Study

LOOK = tuple(name for name, stage in STAGES.items() if stage.outside)
SAMPLE, SCORE, LOG_PROBS = ("filtered_instructions", "candidates"), ("mas_table",), ("logprob_table",)
SELECT = ("preference_pairs", "selection_sweep")
TRAIN, BENCHMARK = ("lora_adapter",), ("benchmark_scores",)
REPORT = ("leaderboard",)
"""The assets that each step brings up to date."""

Divide = Callable[[Study, Selection, int], list[tuple[str, ...]]]
AFTER = {"start": dg.In(dg.Nothing)}


def shard_groups(study: Study, selection: Selection, groups: int) -> list[tuple[str, ...]]:
    """The chosen shards, dealt out in turn: what an earlier run has finished is then missing from all groups alike."""
    shards = [shard for shard in study.shards if not selection.shards or shard in selection.shards]
    return [tuple(shards[i::groups]) for i in range(min(groups, len(shards)))]


def recipe_groups(study: Study, selection: Selection, _: int) -> list[tuple[str, ...]]:
    """The chosen recipes, each with those that are the same training: no node waits for another's adapter."""
    found: dict[str, list[str]] = {}
    for recipe in study.recipes:
        if not selection.recipes or recipe in selection.recipes:
            found.setdefault(study.aliases().get(recipe, recipe), []).append(recipe)
    return [tuple(names) for names in found.values()]


def everything_spread(deployment: Deployment, executor: dg.ExecutorDefinition, description: str) -> dg.JobDefinition:
    """The job, its steps with the tags that the deployment's executor reads."""

    def step(name: str, kind: Kind, said: str, **more) -> dg.OpDefinition:
        # No pool: the runs that a step starts belong to the pool, and would wait for their own step.
        options = {"tags": gpu.op_tags(deployment, kind), "retry_policy": gpu.retry_policy(deployment)}
        return dg.op(name=name, description=said, **options, **more)

    def over_groups(name: str, kind: Kind, said: str, assets: Sequence[str], divide: Divide, dimension: str):
        @step(name, kind, said, ins=AFTER, out=dg.Out(dg.Nothing))
        def run(context: dg.OpExecutionContext, config: Choice, study: StudyResource, store: StoreResource):
            asked = config.selection()
            keys = _own_group(context.get_mapping_key(), divide(study.load(), asked, deployment.groups))
            context.log.info(f"{name}: {dimension} {' '.join(keys)}")
            _bring(context, study, store, config, assets, **{dimension: keys})

        return run

    @step(
        "look",
        "light",
        "Looks at what lies outside, and says which groups of shards have work to do.",
        out=dg.DynamicOut(dg.Nothing),
    )
    def look(context: dg.OpExecutionContext, config: Choice, study: StudyResource, store: StoreResource):
        refuse_unknown(config.selection(), study.load())
        _bring(context, study, store, config, LOOK)
        yield from _at_work(context, config, study, store, (*SAMPLE, *SCORE, *LOG_PROBS), shard_groups, deployment)

    @step(
        "select",
        "light",
        "Selects pairs of all recipes, and says which recipes have work to do.",
        ins=AFTER,
        out=dg.DynamicOut(dg.Nothing),
    )
    def select(context: dg.OpExecutionContext, config: Choice, study: StudyResource, store: StoreResource):
        _bring(context, study, store, config, SELECT)
        yield from _at_work(context, config, study, store, (*TRAIN, *BENCHMARK), recipe_groups, deployment)

    @step("report", "light", "The leaderboard.", ins=AFTER)
    def report(context: dg.OpExecutionContext, config: Choice, study: StudyResource, store: StoreResource):
        _bring(context, study, store, config, REPORT)

    shards = {"divide": shard_groups, "dimension": "shards"}
    recipes = {"divide": recipe_groups, "dimension": "recipes"}
    sample = over_groups("sample", "sampling", "Filters and samples a group of shards.", SAMPLE, **shards)
    score = over_groups("score", "scoring", "MAS of a group of shards.", SCORE, **shards)
    log_probs = over_groups("log_probs", "log_probs", "Log-probs of a group of shards.", LOG_PROBS, **shards)
    train = over_groups("train", "training", "Adapters of a recipe and those equal to it.", TRAIN, **recipes)
    benchmark = over_groups("benchmark", "benchmarks", "Their benchmark scores.", BENCHMARK, **recipes)
    ops = (look, sample, score, log_probs, select, train, benchmark, report)

    @dg.config_mapping
    def for_every_step(choice: Choice) -> dict:
        return {op.name: {"config": choice.model_dump()} for op in ops}

    @dg.graph(config=for_every_step)
    def bring_up_to_date():
        scored = look().map(sample).map(score).map(log_probs)
        report(select(scored.collect()).map(train).map(benchmark).collect())

    @dg.job(name="everything", description=description, executor_def=executor)
    def everything():
        bring_up_to_date()

    return everything


def _bring(
    context: dg.OpExecutionContext,
    study: StudyResource,
    store: StoreResource,
    config: Choice,
    assets: Sequence[str],
    **keys: Sequence[str],
) -> None:
    """Brings a step's assets up to date, as far as they were asked for."""
    asked = config.selection()
    wanted = tuple(name for name in assets if not asked.assets or name in asked.assets)
    if wanted:
        run_selection(context, study, store, replace(asked, assets=wanted, **keys), asked, config.ask_judge)


def _at_work(
    context: dg.OpExecutionContext,
    config: Choice,
    study: StudyResource,
    store: StoreResource,
    assets: Sequence[str],
    divide: Divide,
    deployment: Deployment,
) -> Iterator[dg.DynamicOutput]:
    """An output for every group of which something is not up to date."""
    asked, loaded = config.selection(), study.load()
    heads = held_heads(context.instance, store.open())
    left = [
        item.part
        for item in standings(loaded, store.identities(), heads)
        if item.part[0] in assets and asked.includes(*item.part) and item.state != "fresh"
    ]
    for number, keys in enumerate(divide(loaded, asked, deployment.groups)):
        if any(partition in keys for _, partition in left):
            yield dg.DynamicOutput(None, mapping_key=_name_of_group(number, keys))


def _name_of_group(number: int, keys: Sequence[str]) -> str:
    """Which group it is, and for people how its first key is called."""
    return f"{number}_{re.sub(r'[^A-Za-z0-9]', '_', keys[0])}"


def _own_group(mapping_key: str, groups: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The group that a mapping key names. Raises dg.Failure when the study was edited meanwhile."""
    for number, keys in enumerate(groups):
        if _name_of_group(number, keys) == mapping_key:
            return keys
    raise dg.Failure(
        f"there is no group {mapping_key} any more: the study's shards or recipes changed. Start the job again.",
        allow_retries=False,
    )
