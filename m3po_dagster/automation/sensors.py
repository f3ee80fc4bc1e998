"""The sensors and schedules: looking outside, keeping up, nightly training, nightly questions to a served judge.

Both sensors are level-triggered: each tick compares what the event log holds with what the study and its surroundings
ask for, and starts what is missing. Nothing is remembered from tick to tick.
"""

from collections.abc import Collection, Iterable, Mapping

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus

from m3po_dagster.automation.active_runs import at_work
from m3po_dagster.automation.wanted import (
    Ask,
    Ending,
    Held,
    asks,
    changed_outside,
    obsolete,
    wanted_now,
)
from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES, Head, Part, due, label, partition_keys
from m3po_dagster.materialise import OBSOLETE_TAG, STUDY_TAG, WANTED_TAG
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.study import Study
from m3po_dagster.study_errors import StudyError

OUTSIDE = tuple(name for name, stage in STAGES.items() if stage.outside)
INSIDE = tuple(name for name, stage in STAGES.items() if not stage.outside)
TRAINING = "lora_adapter"
KEEP_UP_SECONDS = 5
MOST_AT_ONCE = 50
"""Runs that the sensors keep waiting or at work; the next tick asks for more."""

ENDINGS: dict[DagsterRunStatus, Ending] = {
    DagsterRunStatus.SUCCESS: "made",
    DagsterRunStatus.FAILURE: "failed",
    DagsterRunStatus.CANCELED: "cancelled",
}


def sensors(study: Study) -> list[dg.SensorDefinition]:
    """The two sensors, running from the start or not as the study says."""
    status = dg.DefaultSensorStatus.RUNNING if study.automation.running else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        asset_selection=list(OUTSIDE),
        minimum_interval_seconds=study.automation.look_every,
        default_status=status,
        description="Looks at dataset, base model, judge, benchmarks and recipes; what changed is materialised anew.",
    )
    def watch_outside(context: dg.SensorEvaluationContext, study: StudyResource, store: StoreResource):
        try:
            loaded = study.load()
        except StudyError as error:
            return dg.SkipReason(str(error))
        busy, heads = at_work(context.instance), read_heads(context.instance, OUTSIDE)
        parts = [(name, key) for name in OUTSIDE for key in partition_keys(STAGES[name], loaded)]
        changed, problems = changed_outside(loaded, store.identities(), heads, busy, known(context, parts))
        for problem in problems:
            context.log.warning(problem)
        return answer(context, loaded, changed, busy, problems)

    @dg.sensor(
        asset_selection=list(INSIDE),
        minimum_interval_seconds=KEEP_UP_SECONDS,
        default_status=status,
        description="Materialises whatever is not up to date once everything it stands on is, and stops runs for "
        "what nobody would ask for any more.",
    )
    def keep_up(context: dg.SensorEvaluationContext, study: StudyResource):
        try:
            loaded = study.load()
        except StudyError as error:
            return dg.SkipReason(str(error))
        # Runs before heads: a run that ends in between is then seen in at least one of the two.
        busy, heads = at_work(context.instance), read_heads(context.instance)
        for part in obsolete(loaded, heads, wanted_by(busy)):
            for run in busy[part]:
                stop(context, part, run)
        allowed = set(INSIDE) - ({TRAINING} if loaded.automation.training != "sensor" else set())
        todo = [part for part in due(loaded, None, heads, busy) if part[0] in allowed]
        wanted = [(part, wanted_now(part, loaded, heads)) for part in known(context, todo)]
        return answer(context, loaded, wanted, busy, [])

    return [watch_outside, keep_up]


def schedules(study: Study) -> list[dg.ScheduleDefinition]:
    """Nightly training, when the study asks for it, and the nightly questions to a served judge."""
    running = dg.DefaultScheduleStatus.RUNNING if study.automation.running else dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        cron_schedule=study.automation.judge_check,
        target=dg.AssetSelection.assets("judge_probe"),
        default_status=running,
        description="Asks a served judge its probe set again: other answers are another judge, and MAS is scored anew.",
    )
    def check_judge(context: dg.ScheduleEvaluationContext, study: StudyResource):
        loaded = study.load()
        if not any(scorer.served for scorer in loaded.judge.scorers):
            return dg.SkipReason("no scorer of the study is served: the hashes of its weights say when it changes")
        return dg.RunRequest(tags={STUDY_TAG: loaded.name})

    @dg.schedule(
        cron_schedule=study.automation.training_schedule,
        target=dg.AssetSelection.assets(TRAINING),
        default_status=running if study.automation.training == "schedule" else dg.DefaultScheduleStatus.STOPPED,
        description="Trains the recipes whose pairs changed, if all their pairs are up to date by then.",
    )
    def train_nightly(context: dg.ScheduleEvaluationContext, study: StudyResource):
        loaded = study.load()
        busy, heads = at_work(context.instance), read_heads(context.instance)
        todo = [part for part in due(loaded, None, heads, busy) if part[0] == TRAINING]
        wanted = [(part, wanted_now(part, loaded, heads)) for part in known(context, todo)]
        found, held = asks(wanted, lambda key: endings(context.instance, key), loaded.automation.max_failures)
        if not found:
            return dg.SkipReason(reason(held, busy, []))
        return [request(loaded, item, single_asset=True) for item in found]

    return [check_judge, train_nightly]


def answer(
    context: dg.SensorEvaluationContext,
    study: Study,
    wanted: list[tuple[Part, str]],
    busy: Collection[Part],
    problems: list[str],
) -> dg.SensorResult | dg.SkipReason:
    """The runs to start for what is wanted, or why there is none."""
    found, held = asks(wanted, lambda key: endings(context.instance, key), study.automation.max_failures)
    for item in held:
        context.log.warning(f"{label(item.part)} is held: {item.why}. Materialise it by hand once that is mended.")
    room = max(0, MOST_AT_ONCE - len(busy))
    if not found[:room]:
        return dg.SkipReason(reason(held, busy, problems))
    return dg.SensorResult(run_requests=[request(study, item) for item in found[:room]])


def reason(held: list[Held], busy: Collection[Part], problems: list[str]) -> str:
    """Why nothing is started, in a sentence."""
    parts = [f"at work: {', '.join(sorted(map(label, busy))[:5])}"] if busy else []
    parts += [f"held: {label(item.part)} ({item.why})" for item in held] + problems
    return "; ".join(parts) or "everything is up to date"


def request(study: Study, item: Ask, single_asset: bool = False) -> dg.RunRequest:
    """The run request of one part."""
    asset, partition = item.part
    return dg.RunRequest(
        run_key=item.run_key,
        partition_key=partition or None,
        asset_selection=None if single_asset else [dg.AssetKey(asset)],
        tags={WANTED_TAG: item.wanted, STUDY_TAG: study.name},
    )


def known(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext, parts: Iterable[Part]) -> list[Part]:
    """The parts that the loaded definitions have: a new recipe or shard counts once they are reloaded."""
    graph = context.repository_def.asset_graph
    loaded: dict[str, set[str]] = {}
    found = []
    for asset, partition in parts:
        if asset not in loaded:
            definition = graph.get(dg.AssetKey(asset)).partitions_def
            loaded[asset] = {str(key) for key in definition.get_partition_keys()} if definition else {""}
        if partition in loaded[asset]:
            found.append((asset, partition))
        else:
            context.log.warning(f"{label((asset, partition))} is new in the study: reload the code location.")
    return found


def endings(instance: dg.DagsterInstance, wanted: str) -> list[Ending]:
    """How earlier runs for one and the same thing ended, the newest first."""
    runs = instance.get_runs(dg.RunsFilter(tags={WANTED_TAG: wanted}, statuses=list(ENDINGS)))
    return ["obsolete" if OBSOLETE_TAG in run.tags else ENDINGS[run.status] for run in runs]


def held_back(
    instance: dg.DagsterInstance, study: Study, heads: Mapping[Part, Head], busy: Collection[Part]
) -> dict[Part, str]:
    """The parts that `keep_up` does not start although they are due, and why."""
    todo = [(part, wanted_now(part, study, heads)) for part in due(study, None, heads, busy) if part[0] in INSIDE]
    _, held = asks(todo, lambda key: endings(instance, key), study.automation.max_failures)
    return {item.part: item.why for item in held}


def wanted_by(busy: dict[Part, list[DagsterRun]]) -> dict[Part, str]:
    """What the runs that the sensors started were started for. Runs by hand are left alone."""
    return {
        part: run.tags[WANTED_TAG]
        for part, runs in busy.items()
        for run in runs
        if WANTED_TAG in run.tags and OBSOLETE_TAG not in run.tags
    }


def stop(context: dg.SensorEvaluationContext, part: Part, run: DagsterRun) -> None:
    """Stops a run whose result nobody would ask for any more; finished parts and seeds of it are kept."""
    if WANTED_TAG not in run.tags or run.status == DagsterRunStatus.CANCELING:
        return
    context.log.info(f"{label(part)}: run {run.run_id} is stopped, what it makes is obsolete")
    # First the tag: a run that ends in between must not look as if somebody had cancelled it by hand.
    context.instance.add_run_tags(run.run_id, {OBSOLETE_TAG: "true"})
    context.instance.run_coordinator.cancel_run(run.run_id)
