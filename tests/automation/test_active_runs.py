"""Telling a run at work from one whose process was killed, on this machine and on others."""

import os
import subprocess
import sys
import time

import dagster as dg
import pytest
from dagster import DagsterEvent, DagsterRunStatus
from dagster._core.events import EngineEventData

from m3po_dagster import run_tags
from m3po_dagster.automation.active_runs import CLOCK_SECONDS, alive, at_work
from m3po_dagster.automation.machine import NAME_VARIABLE, same_machine, this_machine
from m3po_dagster.deployment import VARIABLE


@dg.asset
def base_model() -> None: ...


@dg.asset
def somebody_elses() -> None: ...


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def started(
    instance: dg.DagsterInstance, asset: dg.AssetsDefinition, pid: int, machine: str | None = None, **tags: str
) -> str:
    """A run of the asset that has been started by the process of this id."""
    job = dg.Definitions([asset]).resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(job, tags=tags | ({run_tags.MACHINE: machine} if machine else {}))
    instance.report_engine_event("begun", run, EngineEventData.in_process(pid))
    instance.report_dagster_event(
        DagsterEvent(event_type_value="PIPELINE_START", job_name=run.job_name), run_id=run.run_id
    )
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.STARTED
    return run.run_id


def test_a_run_whose_process_lives_is_at_work(instance):
    run_id = started(instance, base_model, os.getppid(), this_machine())
    assert [run.run_id for run in at_work(instance)["base_model", ""]] == [run_id]


def test_a_run_whose_process_is_gone_is_put_down_as_interrupted(instance, ended):
    run_id = started(instance, base_model, ended, this_machine())
    assert at_work(instance, report=False) == {}
    assert instance.get_run_by_id(run_id).status == DagsterRunStatus.STARTED, "only looked at"
    assert at_work(instance) == {}
    run = instance.get_run_by_id(run_id)
    assert run.status == DagsterRunStatus.FAILURE and run_tags.INTERRUPTED in run.tags


def test_a_run_on_another_machine_is_believed(instance, ended):
    host, boot, space = this_machine().split(" ")
    run_id = started(instance, base_model, ended, f"elsewhere {boot[::-1]} {space}")
    assert [run.run_id for run in at_work(instance)["base_model", ""]] == [run_id]
    container = started(instance, base_model, ended, f"{host} {boot} another-container")
    assert container in {run.run_id for run in at_work(instance)["base_model", ""]}


def test_a_run_of_this_machine_before_it_was_restarted_is_gone(instance):
    host, boot, space = this_machine().split(" ")
    started(instance, base_model, os.getppid(), f"{host} {boot[::-1]} {space}")
    assert at_work(instance) == {}


def test_a_machine_that_changed_its_name_is_the_same(ended):
    _, boot, space = this_machine().split(" ")
    assert same_machine(f"renamed {boot} {space}") is True


def test_a_run_that_a_job_started_is_gone_with_the_jobs_run_wherever_it_was(instance):
    whole = started(instance, somebody_elses, os.getppid())
    tags = {run_tags.STARTED_BY: whole}
    child = started(instance, base_model, os.getppid(), "elsewhere boot space", **tags)
    assert [run.run_id for run in at_work(instance)["base_model", ""]] == [child], "the job is at work"
    instance.report_run_failed(instance.get_run_by_id(whole))
    assert at_work(instance) == {}
    run = instance.get_run_by_id(child)
    assert run.status == DagsterRunStatus.FAILURE and run_tags.INTERRUPTED in run.tags


def test_on_a_cluster_a_process_id_says_nothing(ended, tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    (tmp_path / "deployment.yaml").write_text("executor: k8s")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run_id = started(instance, base_model, ended)
        assert at_work(instance, report=False) == {}, "launched here, and gone"
        monkeypatch.setenv(VARIABLE, str(tmp_path / "deployment.yaml"))
        assert [run.run_id for run in at_work(instance)["base_model", ""]] == [run_id]


@pytest.fixture
def named(monkeypatch):
    """This process in the container that a deployment calls `code one`."""
    monkeypatch.setenv(NAME_VARIABLE, "code one")
    this_machine.cache_clear()
    yield this_machine()
    this_machine.cache_clear()


def test_a_run_in_the_former_container_of_that_name_is_gone(instance, named):
    name, boot, space = named.split(" ")
    started(instance, base_model, os.getppid(), f"{name} {boot} another-container")
    assert at_work(instance) == {}
    kept = started(instance, base_model, os.getppid(), f"={name} {boot} another-container")
    lives = started(instance, base_model, os.getppid(), named)
    assert {run.run_id for run in at_work(instance)["base_model", ""]} == {kept, lives}, "another name, and this one"
    assert same_machine(f"elsewhere {boot} {space}") is True, "a name changes nothing about process ids"


def test_a_named_jobs_run_whose_process_is_gone_gives_its_place_back(instance, ended):
    tags = {run_tags.STUDY: "small"}
    gone = started(instance, somebody_elses, ended, this_machine(), **tags)
    lives = started(instance, somebody_elses, os.getppid(), this_machine(), **tags)
    assert at_work(instance) == {}
    assert instance.get_run_by_id(gone).status == DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(lives).status == DagsterRunStatus.STARTED


def test_runs_of_others_are_not_judged(instance, ended):
    run_id = started(instance, somebody_elses, ended, this_machine())
    assert at_work(instance) == {}
    assert instance.get_run_by_id(run_id).status == DagsterRunStatus.STARTED


def test_a_process_id_that_was_given_out_again_is_not_the_old_process():
    assert alive(os.getppid(), time.time())
    assert not alive(os.getppid(), time.time() - 10 * 365 * 86400 - CLOCK_SECONDS)


def test_a_process_that_ended_and_was_not_collected_does_not_live():
    process = subprocess.Popen([sys.executable, "-c", ""])
    while alive(process.pid, time.time()):
        time.sleep(0.05)
    assert process.wait() == 0
