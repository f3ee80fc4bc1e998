"""Brings the graph up to date from a shell: what `m3po run` does, run by run, on a real Dagster instance.

A Dagster run holds one kind of partition, so the graph is walked in waves: assets of one kind of partition that follow
each other. In a wave each partition with something due is one run, in this process, so that models stay warm.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

import dagster as dg

from m3po_dagster.current import read_heads
from m3po_dagster.graph import STAGES, Stage, due, inputs_of, label, partition_keys
from m3po_dagster.identity import Identities
from m3po_dagster.study import Study


@dataclass(frozen=True)
class Selection:
    """The part of the graph to bring up to date; empty collections mean all."""

    assets: Collection[str] = ()
    shards: Collection[str] = ()
    recipes: Collection[str] = ()

    def includes(self, asset: str, partition: str) -> bool:
        """Whether a part belongs to the selection."""
        if self.assets and asset not in self.assets:
            return False
        keys = dict(zip(STAGES[asset].dimensions, partition.split("|"), strict=False))
        wanted = {"shard": self.shards, "recipe": self.recipes}
        return all(not wanted[name] or key in wanted[name] for name, key in keys.items())


@dataclass(frozen=True)
class Outcome:
    """One run: its assets, its partition, how it ended."""

    assets: tuple[str, ...]
    partition: str
    seconds: float
    reused: tuple[str, ...]
    error: str | None
    run_id: str


def waves() -> list[list[Stage]]:
    """Assets of one kind of partition that follow each other, inputs first."""
    return [list(stages) for _, stages in groupby(STAGES.values(), key=lambda stage: stage.dimensions)]


def bring_up_to_date(
    defs: dg.Definitions,
    study: Study,
    identities: Identities,
    instance: dg.DagsterInstance,
    selection: Selection,
    log_level: str,
    announce: Callable[[str], None] = lambda text: None,
) -> Iterator[Outcome]:
    """Runs what is due, yielding each run's outcome. What hangs on a failed run is left as it is."""
    job = defs.resolve_implicit_global_asset_job_def()
    for wave in waves():
        for partition in partition_keys(wave[0], study):
            names = _due_in_wave(wave, partition, study, identities, instance, selection)
            if names:
                announce(label((" + ".join(names), partition)))
                yield _run(job, names, partition, study, instance, log_level)


def _due_in_wave(
    wave: list[Stage],
    partition: str,
    study: Study,
    identities: Identities,
    instance: dg.DagsterInstance,
    selection: Selection,
) -> list[str]:
    """The wave's assets of one partition that are due, or will be once an earlier one of them is made."""
    waiting = set(due(study, identities, read_heads(instance)))
    names: list[str] = []
    for stage in wave:
        part = (stage.asset, partition)
        follows = any((name, partition) in inputs_of(*part, study) for name in names)
        if (part in waiting or follows) and selection.includes(*part):
            names.append(stage.asset)
    return names


def _run(
    job: dg.JobDefinition, names: list[str], partition: str, study: Study, instance: dg.DagsterInstance, log_level: str
) -> Outcome:
    started = time.monotonic()
    result = job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in names],
        partition_key=partition or None,
        run_config={"loggers": {"console": {"config": {"log_level": log_level}}}},
        tags={"m3po/study": study.name},
        raise_on_error=False,
    )
    reused = tuple(
        event.asset_key.to_user_string()
        for event in result.get_asset_materialization_events()
        if event.materialization.metadata["reused"].value
    )
    failures = [event.event_specific_data.error_display_string for event in result.get_step_failure_events()]
    error = _sentence(failures[0]) if failures else (None if result.success else "the run failed")
    return Outcome(tuple(names), partition, time.monotonic() - started, reused, error, result.run_id)


def _sentence(error: str) -> str:
    """The message of a Dagster error display without class names and stack trace."""
    lines = [line.strip() for line in error.split("\n\nStack Trace")[0].splitlines() if line.strip()]
    return lines[-1] if lines else error
