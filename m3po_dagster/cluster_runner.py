"""Brings the graph up to date from a shell where steps run on a cluster: what `m3po run` does there.

It runs the job `everything` here, as the orchestrator alone; every step is a job on the cluster, and the runs it starts
there are told one by one.
"""

import os
from collections.abc import Iterator, Mapping

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run_iterator

from m3po_dagster import run_tags
from m3po_dagster.automation.machine import this_machine
from m3po_dagster.deployment import DeploymentError, current_deployment
from m3po_dagster.runner import Outcome, Selection, Starting, outcome_of, sentence
from m3po_dagster.study import Study

JOB, NODE = "everything", "bring_up_to_date"
WHY_LENGTH = 200


class ClusterRunner:
    """Runs what is due of the study that M3PO_STUDY names, its steps where M3PO_DEPLOYMENT says."""

    def __init__(self, study: Study, instance: dg.DagsterInstance, log_level: str = "CRITICAL"):
        # The folder that Python looks for modules in on a node too, as `dagster` does for a module.
        repository = ReconstructableRepository.for_module("m3po_dagster.definitions", "defs", os.getcwd())
        self.job = repository.get_reconstructable_job(JOB)
        self.tags = {run_tags.STUDY: study.name, run_tags.MACHINE: this_machine()}
        self.instance, self.log_level = instance, log_level
        self.deployment = current_deployment()

    def bring_up_to_date(self, selection: Selection, starting: Starting, ask_judge: bool) -> Iterator[Outcome]:
        """Runs what is due, yielding the outcome of each run when the step that started it ends.

        `starting` is called with the name of each step when it begins; the rest as `Runner.bring_up_to_date`. Raises
        DeploymentError where steps can't be started from here, or the cluster doesn't answer.
        """
        if self.deployment.executor == "k8s":
            raise DeploymentError(
                "executor: k8s starts its steps from a pod that Dagster's K8sRunLauncher made, not from a shell: start "
                f"the job `{JOB}` in Dagster on the cluster"
            )
        choice = {
            "assets": list(selection.assets),
            "shards": list(selection.shards),
            "recipes": list(selection.recipes),
            "ask_judge": ask_judge,
        }
        run = self.instance.create_run_for_job(
            self.job.get_definition(),
            run_config={
                "ops": {NODE: {"config": choice}},
                "loggers": {"console": {"config": {"log_level": self.log_level}}},
            },
            tags=self.tags,
            job_code_origin=self.job.get_python_origin(),
        )
        told: set[str] = set()
        for event in self._events(run):
            if event.is_step_start:
                starting([_name(event)], "")
            if event.is_step_success or event.is_step_failure or event.is_step_up_for_retry:
                ended = list(self._ended(run.run_id, event.step_key, told))
                yield from ended
                # A step fails for its runs, of which enough was said, or by itself, as one whose node is lost does.
                if event.is_step_failure and not any(outcome.error for outcome in ended):
                    yield Outcome((_name(event),), "", 0.0, (), (), sentence(event), run.run_id)
            if _is_interruption(event):
                raise KeyboardInterrupt

    def _events(self, run: dg.DagsterRun) -> Iterator[dg.DagsterEvent]:
        """The run's events. Raises DeploymentError, the run put down as failed, where its executor can't be started."""
        events = execute_run_iterator(self.job, run, self.instance)
        try:
            first = next(events)
        # The executor connects before the first event; each cluster's client has errors of its own for what is amiss.
        except Exception as error:
            why = " ".join(str(error).split()).rstrip(".")[:WHY_LENGTH]
            said = (
                f"the Ray cluster can't be used ({why}): start it, or name its job server, http://HOST:PORT, in "
                "ray.address of the deployment file"
            )
            self.instance.report_run_failed(run, said)
            raise DeploymentError(said) from error
        yield first
        yield from events

    def _ended(self, run_id: str, step_key: str, told: set[str]) -> Iterator[Outcome]:
        """The runs that a step started and that have ended, oldest first, those in `told` left out."""
        tags: Mapping[str, str] = {run_tags.STARTED_BY: run_id, run_tags.STARTED_BY_STEP: step_key}
        for record in reversed(self.instance.get_run_records(dg.RunsFilter(tags=tags))):
            child = record.dagster_run
            if child.run_id in told or not child.is_finished:
                continue
            told.add(child.run_id)
            # Its node was lost: the step that was started again makes what it did not, or fails and says so.
            if run_tags.INTERRUPTED in child.tags:
                continue
            names = [key.to_user_string() for key in child.asset_selection or ()]
            entries = self.instance.get_records_for_run(child.run_id).records
            events = [entry.event_log_entry.dagster_event for entry in entries if entry.event_log_entry.dagster_event]
            seconds = max(0.0, (record.end_time or 0.0) - (record.start_time or record.end_time or 0.0))
            partition = child.tags.get("dagster/partition", "")
            yield outcome_of(names, partition, seconds, events, child.is_success, child.run_id)


def _name(event: dg.DagsterEvent) -> str:
    """How a step is called in its job: `sample[0_s0]`."""
    return event.step_key.removeprefix(f"{NODE}.")


def _is_interruption(event: dg.DagsterEvent) -> bool:
    """Whether a run ended because it was told to, here or in the web interface; its steps were told too."""
    if event.event_type == dg.DagsterEventType.RUN_FAILURE:
        return event.job_failure_data.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION
    return event.event_type == dg.DagsterEventType.RUN_CANCELED
