"""Which runs are at work, on what: by the sensors, by hand or by a backfill, it is all the same."""

import os
import socket

import dagster as dg
import psutil
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from m3po_dagster.graph import STAGES, Part

HOST_TAG = "m3po/host"
"""Tag of a run in a process that no daemon started: the machine where its process id means something."""
ACTIVE = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
"""Not NOT_STARTED: a tick that was cut off between making a run and handing it over leaves one behind. Asked for under
the same run key, Dagster hands that very run over."""
CLOCK_SECONDS = 5.0


def at_work(instance: dg.DagsterInstance, report: bool = True) -> dict[Part, list[DagsterRun]]:
    """The parts that a run will make or is making, with the runs.

    A run whose process is gone, killed without a word, counts no more; with `report` it is put down as failed.
    """
    found: dict[Part, list[DagsterRun]] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE)):
        if run.status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING) and process_gone(instance, run):
            if report:
                instance.report_run_failed(run, "The process of this run is gone. What it had finished is kept.")
            continue
        for part in _planned(instance, run):
            found.setdefault(part, []).append(run)
    return found


def _planned(instance: dg.DagsterInstance, run: DagsterRun) -> list[Part]:
    records = instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION_PLANNED).records
    planned = [record.event_log_entry.dagster_event.event_specific_data for record in records]
    parts = [(data.asset_key.to_user_string(), data.partition or "") for data in planned]
    return [part for part in parts if part[0] in STAGES]


def process_gone(instance: dg.DagsterInstance, run: DagsterRun) -> bool:
    """Whether the process of a started run has ended on this machine without saying so.

    Known only of processes that Dagster's local launcher or a command on this machine started; elsewhere the
    launcher's own health check speaks.
    """
    host = run.tags.get(HOST_TAG)
    here = host == socket.gethostname() if host else isinstance(instance.run_launcher, DefaultRunLauncher)
    if not here:
        return False
    for record in instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT).records:
        pid = record.event_log_entry.dagster_event.engine_event_data.metadata.get("pid")
        if pid is not None:
            return not _alive(int(str(pid.value)), record.event_log_entry.timestamp)
    return False


def _alive(pid: int, seen: float) -> bool:
    """Whether the process that had this id at that time still runs; after a reboot another may have it."""
    if pid == os.getpid():
        return True
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= seen + CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
