"""The sensors and schedules: looking outside, keeping up, nightly training, nightly questions to a served judge.

Both sensors are level-triggered: each tick compares what the event log holds with what the study and its surroundings
ask for, and starts what is missing. Nothing is remembered from tick to tick.
"""

import time
from collections.abc import Collection, Iterable, Mapping

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import MAX_RETRIES_TAG

from m3po_dagster import run_tags
from m3po_dagster.automation.active_runs import at_work, model_place_left
from m3po_dagster.automation.wanted import (
    Ask,
    Ending,
    Held,
    asks,
    changed_outside,
    in_the_way,
    obsolete,
    study_version,
    wanted_now,
)
from m3po_dagster.current import held_heads
from m3po_dagster.graph import STAGES, Head, Part, due, label, made_from, partition_keys, standings
from m3po_dagster.identity import Identities
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import Study
from m3po_dagster.study_errors import StudyError

OUTSIDE = tuple(name for name, stage in STAGES.items() if stage.outside)
INSIDE = tuple(name for name, stage in STAGES.items() if not stage.outside)
TRAINING = "lora_adapter"
KEEP_UP_SECONDS = 5
MOST_AT_ONCE = 50
"""Runs that the sensors keep waiting or at work; the next tick asks for more."""


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
        busy = at_work(context.instance)
        heads = held_heads(context.instance, store.open(), often=True)
        parts = known(context, ((name, key) for name in OUTSIDE for key in partition_keys(STAGES[name], loaded)))
        changed, problems = changed_outside(loaded, store.identities(), heads, busy, parts)
        return answer(context, loaded, store.open(), heads, changed, busy, problems)

    @dg.sensor(
        asset_selection=list(INSIDE),
        minimum_interval_seconds=KEEP_UP_SECONDS,
        default_status=status,
        description="Materialises whatever is not up to date once everything it stands on is, and stops runs for "
        "what nobody would ask for any more.",
    )
    def keep_up(context: dg.SensorEvaluationContext, study: StudyResource, store: StoreResource):
        try:
            loaded = study.load()
        except StudyError as error:
            return dg.SkipReason(str(error))
        # Runs before heads: a run that ends in between is then seen in at least one of the two.
        busy = at_work(context.instance)
        heads = held_heads(context.instance, store.open(), often=True)
        for part in no_longer_wanted(context.instance, loaded, heads, busy):
            for run in busy[part]:
                stop(context, part, run)
        todo = to_start(context, loaded, heads, busy)
        return answer(context, loaded, store.open(), heads, todo, busy, [])

    return [watch_outside, keep_up]


def no_longer_wanted(
    instance: dg.DagsterInstance, study: Study, heads: Mapping[Part, Head], busy: Mapping[Part, list[DagsterRun]]
) -> list[Part]:
    """The parts whose runs are to be stopped: obsolete, or in the way of what would tell."""
    wanted = wanted_by(busy)
    found = obsolete(study, heads, wanted)
    queued = [part for part, runs in busy.items() if any(run.status == DagsterRunStatus.QUEUED for run in runs)]
    if queued and not model_place_left(instance):
        begun = [part for part in wanted if any(run.status == DagsterRunStatus.STARTED for run in busy[part])]
        found += [part for part in in_the_way(study, heads, begun, queued) if part not in found]
    return found


def to_start(
    context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext,
    study: Study,
    heads: Mapping[Part, Head],
    busy: Collection[Part],
    scheduled: bool = False,
) -> list[tuple[Part, str]]:
    """What is due inside the graph and may be started by a sensor, or what only the schedule may start."""
    training = {TRAINING} if study.automation.training != "sensor" else set()
    allowed = training if scheduled else set(INSIDE) - training
    todo = [part for part in due(study, None, heads, busy) if part[0] in allowed]
    return [(part, wanted_now(part, study, heads)) for part in known(context, todo)]


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
        try:
            loaded = study.load()
        except StudyError as error:
            return dg.SkipReason(str(error))
        if not any(scorer.served for scorer in loaded.judge.assessors):
            return dg.SkipReason("no scorer of the study is served: the hashes of its weights say when it changes")
        return dg.RunRequest(tags={run_tags.STUDY: loaded.name})

    @dg.schedule(
        cron_schedule=study.automation.training_schedule,
        target=dg.AssetSelection.assets(TRAINING),
        default_status=running,
        description="With `training: schedule`, trains the recipes whose pairs changed, if all of them are up to date.",
    )
    def train_nightly(context: dg.ScheduleEvaluationContext, study: StudyResource, store: StoreResource):
        try:
            loaded = study.load()
        except StudyError as error:
            return dg.SkipReason(str(error))
        if loaded.automation.training != "schedule":
            return dg.SkipReason(f"the study says training: {loaded.automation.training}")
        busy, heads = at_work(context.instance), held_heads(context.instance, store.open())
        todo = to_start(context, loaded, heads, busy, scheduled=True)
        found, held = decided(context.instance, loaded, store.open(), heads, todo)
        if not found:
            return dg.SkipReason(reason(loaded, heads, busy, held, []))
        return [request(loaded, item, single_asset=True) for item in found]

    return [check_judge, train_nightly]


def answer(
    context: dg.SensorEvaluationContext,
    study: Study,
    store: ArtifactStore,
    heads: Mapping[Part, Head],
    todo: list[tuple[Part, str]],
    busy: Collection[Part],
    problems: list[str],
) -> dg.SensorResult | dg.SkipReason:
    """The runs to start for what is to be done, or why there is none."""
    found, held = decided(context.instance, study, store, heads, todo)
    room = max(0, MOST_AT_ONCE - len(busy))
    if not found[:room]:
        return dg.SkipReason(reason(study, heads, busy, held, problems))
    return dg.SensorResult(run_requests=[request(study, item) for item in found[:room]])


def decided(
    instance: dg.DagsterInstance,
    study: Study,
    store: ArtifactStore,
    heads: Mapping[Part, Head],
    todo: list[tuple[Part, str]],
) -> tuple[list[Ask], list[Held]]:
    """What of it is started now, and what is held, by the runs there were for it and by what the store has."""

    def in_store(part: Part) -> bool:
        return store.find(*part, made_from(part, study, None, heads)) is not None

    return asks(todo, lambda wanted: endings(instance, wanted), in_store, study, time.time())


def reason(
    study: Study, heads: Mapping[Part, Head], busy: Collection[Part], held: list[Held], problems: list[str]
) -> str:
    """Why nothing is started, in a sentence."""
    left = [item for item in standings(study, None, heads, busy) if item.state not in ("fresh", "running")]
    parts = [f"at work: {', '.join(sorted(map(label, busy))[:5])}"] if busy else []
    parts += [f"held: {label(item.part)} ({item.why})" for item in held[:5]] + problems
    parts += [f"not up to date: {label(item.part)} ({item.why})" for item in left[:2]]
    return "; ".join(parts) or "everything is up to date"


def request(study: Study, item: Ask, single_asset: bool = False) -> dg.RunRequest:
    """The run request of one part."""
    asset, partition = item.part
    tags = {run_tags.WANTED: item.wanted, run_tags.STUDY: study.name, run_tags.STUDY_VERSION: study_version(study)}
    # A deployment may let Dagster retry what died; of these runs the sensors do it, with their own count and waits.
    tags[MAX_RETRIES_TAG] = "0"
    if not STAGES[asset].outside:
        tags[run_tags.FINGERPRINT] = item.wanted
    return dg.RunRequest(
        run_key=item.run_key,
        partition_key=partition or None,
        asset_selection=None if single_asset else [dg.AssetKey(asset)],
        tags=tags | run_tags.of_partition(STAGES[asset].dimensions, partition),
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
    """How earlier runs for one and the same thing ended, the newest first.

    A run executed again from the UI carries the tags of the old one, but is a run by hand.
    """
    ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    records = instance.get_run_records(dg.RunsFilter(tags={run_tags.WANTED: wanted}, statuses=ended))
    return [
        Ending(
            _how(record.dagster_run, started=record.start_time is not None),
            record.end_time or record.update_timestamp.timestamp(),
            record.dagster_run.run_id,
            record.dagster_run.tags.get(run_tags.STUDY_VERSION, ""),
        )
        for record in records
        if record.dagster_run.parent_run_id is None
    ]


def _how(run: DagsterRun, started: bool) -> str:
    if run_tags.OBSOLETE in run.tags:
        return "obsolete"
    if run.status == DagsterRunStatus.FAILURE:
        return "interrupted" if run_tags.INTERRUPTED in run.tags or not started else "failed"
    return "made" if run.status == DagsterRunStatus.SUCCESS else "cancelled"


def held_back(
    instance: dg.DagsterInstance,
    study: Study,
    store: ArtifactStore,
    identities: Identities,
    heads: Mapping[Part, Head],
    busy: Collection[Part],
) -> dict[Part, str]:
    """What the sensors don't start although it is due, and why."""
    outside = [(name, key) for name in OUTSIDE for key in partition_keys(STAGES[name], study)]
    todo, _ = changed_outside(study, identities, heads, busy, outside)
    todo += [(part, wanted_now(part, study, heads)) for part in due(study, None, heads, busy) if part[0] in INSIDE]
    _, held = decided(instance, study, store, heads, todo)
    found = {
        item.part: item.why if item.later else f"held, {item.why}: mend it and materialise it by hand" for item in held
    }
    if study.automation.training != "sensor":
        starts = "waits for the schedule" if study.automation.training == "schedule" else "waits to be started by hand"
        found |= {part: f"training {starts}" for part, _ in todo if part[0] == TRAINING}
    return found


def wanted_by(busy: Mapping[Part, list[DagsterRun]]) -> dict[Part, str]:
    """What the runs that the sensors started were started for. Runs by hand are left alone."""
    return {part: run.tags[run_tags.WANTED] for part, runs in busy.items() for run in runs if started_here(run)}


def started_here(run: DagsterRun) -> bool:
    """Whether a sensor started a run and has not stopped it since."""
    return run_tags.WANTED in run.tags and run_tags.OBSOLETE not in run.tags and run.parent_run_id is None


def stop(context: dg.SensorEvaluationContext, part: Part, run: DagsterRun) -> None:
    """Stops a run whose result nobody would ask for any more; finished parts and seeds of it are kept."""
    if not started_here(run) or run.status == DagsterRunStatus.CANCELING:
        return
    context.log.info(f"{label(part)}: run {run.run_id} is stopped, what it makes is obsolete")
    # First the tag: a run that ends in between must not look as if somebody had cancelled it by hand.
    context.instance.add_run_tags(run.run_id, {run_tags.OBSOLETE: "true"})
    try:
        context.instance.run_coordinator.cancel_run(run.run_id)
    except dg.DagsterError as error:
        context.log.warning(f"{label(part)}: run {run.run_id} can't be stopped, it goes on to its end: {error}")
