"""Which runs are at work, on what: by the sensors, by hand or by a backfill, it is all the same."""

import os

import dagster as dg
import psutil
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from m3po_dagster import run_tags
from m3po_dagster.automation.machine import same_machine
from m3po_dagster.deployment import current_deployment
from m3po_dagster.graph import STAGES, Part
from m3po_dagster.resources.gpu import MODEL_POOL

ACTIVE = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
"""Not NOT_STARTED: a tick that was cut off between making a run and handing it over leaves one behind. Asked for under
the same run key, Dagster hands that very run over."""
BEGUN = (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
IN_A_POOL = [DagsterRunStatus.STARTING, *BEGUN]
CLOCK_SECONDS = 60.0
"""By how much a machine's clock may have been set right since a process began."""


def at_work(instance: dg.DagsterInstance, report: bool = True) -> dict[Part, list[DagsterRun]]:
    """The parts that a run will make or is making, with the runs.

    A run whose process is gone, killed without a word, counts no more; with `report` it is put down as failed, and so
    is a named job's, which makes no asset itself but holds a place in a pool. Other runs are not this project's to
    judge.
    """
    found: dict[Part, list[DagsterRun]] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE)):
        parts = _planned(instance, run)
        ours = parts or run_tags.STUDY in run.tags
        if ours and run.status in BEGUN and process_gone(instance, run):
            if report:
                put_down(instance, run)
            continue
        for part in parts:
            found.setdefault(part, []).append(run)
    return found


def put_down(instance: dg.DagsterInstance, run: DagsterRun) -> None:
    """Puts a run down as failed whose process is gone, and tags it as no fault of what it was doing."""
    instance.add_run_tags(run.run_id, {run_tags.INTERRUPTED: "true"})
    instance.report_run_failed(run, "The process of this run is gone. What it had finished is kept.")


def model_place_left(instance: dg.DagsterInstance) -> bool:
    """Whether the pool of the steps that load a model has room for one more run."""
    pools = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    limit = pools.get(MODEL_POOL, instance.get_concurrency_config().pool_config.default_pool_limit)
    if limit is None:
        return True
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_A_POOL))
    held = [run for run in runs if run.run_op_concurrency and MODEL_POOL in (run.run_op_concurrency.all_pools or ())]
    return len(held) < limit


def _planned(instance: dg.DagsterInstance, run: DagsterRun) -> list[Part]:
    records = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION_PLANNED).records
    planned = [record.event_log_entry.dagster_event.event_specific_data for record in records]
    parts = [(data.asset_key.to_user_string(), data.partition or "") for data in planned]
    return [part for part in parts if part[0] in STAGES]


def process_gone(instance: dg.DagsterInstance, run: DagsterRun) -> bool:
    """Whether the process of a started run has ended without saying so.

    Known of processes on this machine, and of runs that a step of another run started, which end with it; of the rest
    the launcher's own health check speaks.
    """
    if _outlived(instance, run):
        return True
    machine = run.tags.get(run_tags.MACHINE)
    launched_here = isinstance(instance.run_launcher, DefaultRunLauncher) and not current_deployment().clustered
    here = same_machine(machine) if machine else launched_here
    if here is None:
        return True
    if not here:
        return False
    for record in instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT).records:
        pid = record.event_log_entry.dagster_event.engine_event_data.metadata.get("pid")
        if pid is not None:
            return not alive(int(str(pid.value)), record.event_log_entry.timestamp)
    return False


def _outlived(instance: dg.DagsterInstance, run: DagsterRun) -> bool:
    """Whether the run that started this one has ended while this one counts as begun still."""
    starter = instance.get_run_by_id(run.tags[run_tags.STARTED_BY]) if run_tags.STARTED_BY in run.tags else None
    if starter is None or not starter.is_finished:
        return False
    # Looked at again, after its starter: both may have ended since this one was read.
    now = instance.get_run_by_id(run.run_id)
    return now is not None and now.status in BEGUN


def alive(pid: int, seen: float) -> bool:
    """Whether the process that had this id at that time still runs: ids are given out again."""
    if pid == os.getpid():
        return True
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= seen + CLOCK_SECONDS
    except psutil.Error:
        # Gone, or somebody else's by now: a process of our own can be looked at.
        return False
