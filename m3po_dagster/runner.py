"""Brings the graph up to date from a shell: what `m3po run` does, run by run, on a real Dagster instance.

A Dagster run holds one kind of partition, so the graph is walked in waves: assets of one kind of partition that follow
each other. In a wave each partition with something due is one run, in this process, so that models stay warm.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby

import dagster as dg

from m3po_dagster import run_tags
from m3po_dagster.automation.machine import this_machine
from m3po_dagster.current import held_heads
from m3po_dagster.graph import STAGES, Part, Stage, due, inputs_of, partition_keys, upstream_of
from m3po_dagster.materialise import LOST_METADATA
from m3po_dagster.resources.study import StoreResource
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

    def owes(self, asset: str, partition: str) -> bool:
        """Whether a part of the selection can be up to date by the selection alone.

        What stands on shards or recipes that were not chosen is made too if they happen to be up to date; that it can't
        be is no failure. An asset that was chosen by name is owed in any case.
        """
        if not self.includes(asset, partition):
            return False
        above = {dimension for name in upstream_of(asset) for dimension in STAGES[name].dimensions}
        narrowed = {name for name, chosen in (("shard", self.shards), ("recipe", self.recipes)) if chosen}
        return asset in self.assets or not narrowed & (above - set(STAGES[asset].dimensions))

    def refuse_unknown(self, study: Study) -> None:
        """Raises ValueError with a sentence for a name that the study hasn't."""
        for kind, given, there in (
            ("asset", self.assets, list(STAGES)),
            ("shard", self.shards, study.shards),
            ("recipe", self.recipes, list(study.recipes)),
        ):
            if unknown := [name for name in given if name not in there]:
                raise ValueError(f"no {kind} {unknown[0]!r} in study {study.name}; there are {', '.join(there)}")


EVERYTHING = Selection()
Starting = Callable[[Sequence[str], str], None]

MOST_LOSSES = 2
"""How often a part may turn out to be damaged in one go before it is given up: a disk may spoil all that is written."""

WRAPPED_BY = ("DagsterExecutionStepExecutionError", "DagsterUserCodeExecutionError")
"""What Dagster puts around an error of a step."""

INTERRUPTIONS = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")


@dataclass(frozen=True)
class Outcome:
    """One run: its assets, its partition, how it ended."""

    assets: tuple[str, ...]
    partition: str
    seconds: float
    reused: tuple[str, ...]
    failed: tuple[str, ...]
    error: str | None
    run_id: str
    lost: tuple[str, ...] = ()
    """What it met that was damaged or gone from the store, by name: that is due again, and what failed for it too."""


def waves() -> list[list[Stage]]:
    """Assets of one kind of partition that follow each other, inputs first."""
    return [list(stages) for _, stages in groupby(STAGES.values(), key=lambda stage: stage.dimensions)]


class Runner:
    """Runs what is due of one study on one instance, in this process."""

    def __init__(
        self,
        defs: dg.Definitions,
        study: Study,
        store: StoreResource,
        instance: dg.DagsterInstance,
        log_level: str = "CRITICAL",
        tags: Mapping[str, str] | None = None,
    ):
        """`tags` are put on every run beside the study's name and this machine's."""
        self.job = defs.resolve_implicit_global_asset_job_def()
        self.tags = {run_tags.STUDY: study.name, run_tags.MACHINE: this_machine(), **(tags or {})}
        self.study, self.instance, self.log_level = study, instance, log_level
        self.store, self.identities = store.open(), store.identities()

    def bring_up_to_date(
        self,
        selection: Selection = EVERYTHING,
        starting: Starting = lambda *_: None,
        ask_judge: bool = False,
    ) -> Iterator[Outcome]:
        """Runs what is due, yielding each run's outcome. What hangs on a failed run is left as it is.

        When a run met an object that was damaged, and so set aside, the graph is walked again: it is made again.

        `starting` is called with the assets and the partition of each run before it begins. `ask_judge`: the judge is
        asked its probe set whether that is due or not.
        """
        for_good: set[Part] = set()
        losses: Counter[str] = Counter()
        for walk in count():
            failed, lost = set(for_good), False
            for wave in waves():
                # Partitions of a wave don't depend on each other, so one look serves the wave.
                waiting = set(due(self.study, self.identities, held_heads(self.instance, self.store)))
                if ask_judge and walk == 0:
                    waiting |= {(stage.asset, "") for stage in wave if stage.observed}
                for partition in partition_keys(wave[0], self.study):
                    names = self._due(wave, partition, waiting, selection, failed)
                    if names:
                        starting(names, partition)
                        outcome = self._run(names, partition)
                        failed |= {(name, partition) for name in outcome.failed}
                        losses.update(outcome.lost)
                        if outcome.lost and max(losses.values()) <= MOST_LOSSES:
                            lost = True
                        else:
                            for_good |= {(name, partition) for name in outcome.failed}
                        yield outcome
            if not lost:
                return

    def _due(
        self, wave: list[Stage], partition: str, waiting: set[Part], selection: Selection, failed: set[Part]
    ) -> list[str]:
        """The wave's assets of one partition that are due, or will be once an earlier one of them is made."""
        names: list[str] = []
        for stage in wave:
            part = (stage.asset, partition)
            inputs = inputs_of(*part, self.study)
            if failed.intersection(inputs):
                failed.add(part)
            elif selection.includes(*part) and (part in waiting or any((name, partition) in inputs for name in names)):
                names.append(stage.asset)
        return names

    def _run(self, names: list[str], partition: str) -> Outcome:
        started = time.monotonic()
        result = self.job.execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in names],
            partition_key=partition or None,
            run_config={"loggers": {"console": {"config": {"log_level": self.log_level}}}},
            tags=self.tags,
            raise_on_error=False,
        )
        # Dagster turns Ctrl-C and SIGTERM into a failed step; going on with the next run is not what they ask for.
        if any(event.event_specific_data.error.cls_name in INTERRUPTIONS for event in result.get_step_failure_events()):
            raise KeyboardInterrupt
        seconds = time.monotonic() - started
        return outcome_of(names, partition, seconds, result.all_events, result.success, result.run_id)


def outcome_of(
    names: Sequence[str],
    partition: str,
    seconds: float,
    events: Sequence[dg.DagsterEvent],
    success: bool,
    run_id: str,
) -> Outcome:
    """How a run of these assets ended, by its events."""
    made = {
        event.asset_key.to_user_string(): event.materialization for event in events if event.is_step_materialization
    }
    reused = tuple(name for name, event in made.items() if event.metadata["reused"].value)
    failed_steps = [event for event in events if event.is_step_failure]
    checks = [
        event.asset_check_evaluation_data
        for event in events
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    failures = [sentence(event) for event in failed_steps if not _is_check(event)]
    failures += [
        f"{one.asset_key.to_user_string()}: check {one.check_name} failed: {one.description}"
        for one in checks
        if one.blocking and not one.passed
    ]
    error = None if success else "\n".join(failures) or "the run failed"
    # A failed blocking check leaves a materialisation behind that nothing may build on.
    stopped = {event.step_key for event in failed_steps}
    failed = tuple(name for name in names if name in stopped or name not in made)
    lost = tuple(name for event in failed_steps for name in _lost(event))
    return Outcome(tuple(names), partition, seconds, reused, failed, error, run_id, lost)


def _is_check(event: dg.DagsterEvent) -> bool:
    """Whether a step failed for a blocking check alone, of which its outcome says more."""
    return event.event_specific_data.error.cls_name == "DagsterAssetCheckFailedError"


def _lost(event: dg.DagsterEvent) -> list[str]:
    """What a failed step says it met damaged or gone."""
    told = event.event_specific_data.user_failure_data
    return [str(told.metadata[LOST_METADATA].value)] if told and LOST_METADATA in told.metadata else []


def sentence(event: dg.DagsterEvent) -> str:
    """The message of a failed step, all its lines, without stack traces and Dagster's own words around it."""
    error = event.event_specific_data.error
    while error.cause is not None and error.cls_name in WRAPPED_BY:
        error = error.cause
    kind, _, message = error.message.strip().partition(": ")
    # A failure that was raised for the user to read says all; another error's kind is half of what it says.
    text = message if kind.endswith(".Failure") else error.message.strip()
    return text if text.startswith(event.step_key) else f"{event.step_key}: {text}"
