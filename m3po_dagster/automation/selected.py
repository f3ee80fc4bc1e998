"""One step of a named job: brings a choice, or the part of a choice that is its own, up to date, run by run."""

from pathlib import Path

import dagster as dg
from dagster import DagsterRunStatus
from dagster._core.errors import DagsterExecutionInterruptedError
from pydantic import Field

from m3po_dagster import run_tags
from m3po_dagster.automation.active_runs import BEGUN, put_down
from m3po_dagster.automation.machine import this_machine
from m3po_dagster.current import held_heads
from m3po_dagster.deployment import current_deployment
from m3po_dagster.graph import label, standings
from m3po_dagster.resources.generator import times_loaded
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.runner import Runner, Selection
from m3po_dagster.study import Study


class Choice(dg.Config):
    """Empty lists mean all."""

    assets: list[str] = Field([], description="only these assets, by name; empty: all")
    shards: list[str] = Field([], description="only these shards; empty: all")
    recipes: list[str] = Field([], description="only these recipes; empty: all")
    ask_judge: bool = Field(False, description="ask served judges their probe set again, due or not")

    def selection(self) -> Selection:
        """What it chooses of the graph."""
        return Selection(self.assets, self.shards, self.recipes)


def run_selection(
    context: dg.OpExecutionContext,
    study: StudyResource,
    store: StoreResource,
    selection: Selection,
    owed: Selection | None = None,
    ask_judge: bool = False,
) -> None:
    """Brings the selection up to date; of it the job owes what `owed` does, or all.

    Raises dg.Failure for a name the study hasn't, and when a run failed.
    """
    from m3po_dagster.definitions import build_definitions

    loaded = study.load()
    refuse_unknown(selection, loaded)
    tags = {run_tags.STUDY: loaded.name}
    if not current_deployment().clustered:  # in a cluster this is the step's machine, not the run's
        tags[run_tags.MACHINE] = this_machine()
    tags |= {
        run_tags.of_dimension(kind): names[0] for kind, names in chosen(owed or selection).items() if len(names) == 1
    }
    context.instance.add_run_tags(context.run_id, tags)
    started_by = {
        run_tags.STARTED_BY: context.run_id,
        run_tags.STARTED_BY_STEP: context.get_step_execution_context().step.key,
    }
    if context.retry_number:
        _give_up_runs_of_the_lost_step(context.instance, started_by)
    runner = Runner(build_definitions(Path(study.path), store.root), loaded, store, context.instance, tags=started_by)
    failures = []
    try:
        for outcome in runner.bring_up_to_date(selection, ask_judge=ask_judge):
            what = f"{' '.join(outcome.assets)}{f'[{outcome.partition}]' if outcome.partition else ''}"
            context.log.info(f"{what}: {outcome.error or 'done'} ({outcome.seconds:.1f} s, run {outcome.run_id})")
            failures += [f"{what}: {outcome.error}"] if outcome.error else []
    except KeyboardInterrupt:
        raise DagsterExecutionInterruptedError from None
    loads = times_loaded()
    context.log.info(f"base model loaded {loads} time{'' if loads == 1 else 's'} in this process")
    if failures:
        raise dg.Failure(f"{len(failures)} runs failed, the first: {failures[0]}", allow_retries=False)
    heads = held_heads(context.instance, store.open())
    left = [
        item
        for item in standings(loaded, store.identities(), heads)
        if selection.includes(*item.part) and (owed or selection).owes(*item.part) and item.state != "fresh"
    ]
    if left:
        first = f"{label(left[0].part)} is {left[0].state}: {left[0].why}"
        raise dg.Failure(
            f"{len(left)} of the parts asked for are not up to date, the first: {first}", allow_retries=False
        )


def refuse_unknown(selection: Selection, study: Study) -> None:
    """Raises dg.Failure with a sentence for a name that the study hasn't."""
    try:
        selection.refuse_unknown(study)
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def chosen(selection: Selection) -> dict[str, list[str]]:
    """What a selection is narrowed to, by dimension."""
    return {"shard": list(selection.shards), "recipe": list(selection.recipes)}


def _give_up_runs_of_the_lost_step(instance: dg.DagsterInstance, started_by: dict[str, str]) -> None:
    """The runs that an earlier attempt of this step left at work: its process is gone, and theirs with it."""
    statuses = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, *BEGUN]
    for run in instance.get_runs(dg.RunsFilter(tags=started_by, statuses=statuses)):
        put_down(instance, run)
