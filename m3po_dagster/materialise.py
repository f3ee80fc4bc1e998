"""One step of the graph: find the inputs, find or make the result, commit it, tell Dagster.

Every asset goes through `materialise`; it is where fingerprints, reuse, refusal of bad inputs, locks and metadata are
handled, once.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import dagster as dg
import pyarrow as pa
from dagster._core.errors import DagsterExecutionInterruptedError

from m3po_dagster import run_tags
from m3po_dagster.assets.checks import Check
from m3po_dagster.automation.machine import this_machine
from m3po_dagster.current import FINGERPRINT_METADATA, complete, read_heads
from m3po_dagster.deployment import current_deployment
from m3po_dagster.graph import (
    STAGES,
    Head,
    Part,
    inputs_of,
    label,
    made_from,
    not_settled,
    part_fingerprint,
    partition_keys,
)
from m3po_dagster.identity import Identities
from m3po_dagster.method.alignment.ledger_errors import LedgerError
from m3po_dagster.out_of_memory import out_of_memory, what_to_do
from m3po_dagster.progress import progress
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.check import check
from m3po_dagster.storage.content import table_hash
from m3po_dagster.storage.draft import Draft
from m3po_dagster.storage.errors import Busy, Damaged, StoreError
from m3po_dagster.storage.manifest import content_version
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import TableSchema
from m3po_dagster.study import Study

MENDABLE = (StoreError, LedgerError, OSError, ValueError, FloatingPointError, MemoryError)
"""What a user can mend; the message says where and how, a stack trace adds nothing."""

SECONDS_BETWEEN_TRIES = 1.0

LOST_METADATA = "lost"
"""On the failure of a step that met an object which was damaged or gone: it is due again, and then this step is."""

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Built:
    """What a step made: its tables with their schemas, facts for the manifest, and check outcomes.

    `made_with` names objects that the step made on the way and that the result stands on (an adapter a seed): gc keeps
    them while it keeps the result, and a result that lost one is completed.
    """

    tables: Mapping[str, tuple[pa.Table, TableSchema]]
    facts: Mapping[str, object] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    made_with: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass
class Work:
    """What a step works with. `inputs` holds the committed artifact of every input part."""

    part: Part
    study: Study
    store: ArtifactStore
    identities: Identities
    heads: Mapping[Part, Head]
    inputs: dict[Part, Artifact]
    log: Callable[[str], None]
    draft: Draft | None = None
    run_id: str = ""

    @property
    def partition(self) -> str:
        """The partition key of the part; '' without partitions."""
        return self.part[1]

    def all(self, asset: str) -> dict[str, Artifact]:
        """The input artifacts of an asset by partition key, in the study's order."""
        return {key: artifact for (name, key), artifact in self.inputs.items() if name == asset}

    def one(self, asset: str) -> Artifact:
        """The only input artifact of an asset."""
        (artifact,) = self.all(asset).values()
        return artifact

    @contextmanager
    def open(self, asset: str, partition: str, fingerprint: str) -> Iterator[Draft]:
        """A draft in the store, as `ArtifactStore.open` gives it, once no other run is at work on it.

        A run beside this one makes the very same result; when it is done, `committed` is it. Should it die, its lock
        goes with it and this run goes on from its finished parts.
        """
        with ExitStack() as stack:
            told = False
            while True:
                try:
                    draft = stack.enter_context(self.store.open(asset, partition, fingerprint))
                    break
                except Busy as error:
                    if not told:
                        self.log(f"{label(self.part)}: {error}. Waiting.")
                    told = True
                    time.sleep(SECONDS_BETWEEN_TRIES)
            yield draft

    def provenance(self) -> dict[str, dict[str, str]]:
        """What the result is made from, as the manifest records it."""
        return {label(part): reference(artifact) for part, artifact in self.inputs.items()}

    def progress(self, what: str, unit: str):
        """A progress callback for a long loop (see `progress.progress`)."""
        return progress(self.log, f"{label(self.part)} {what}", unit)


def reference(artifact: Artifact) -> dict[str, str | None]:
    """How one manifest names another artifact."""
    manifest = artifact.manifest
    return {
        "asset": manifest.asset,
        "partition": manifest.partition,
        "fingerprint": manifest.fingerprint,
        "data_version": manifest.data_version,
    }


class Obsolete(Exception):
    """What a run was asked for is no longer what would be made; the message says what changed."""


def materialise(
    context: dg.AssetExecutionContext,
    study: StudyResource,
    store: StoreResource,
    build: Callable[[Work], Built],
    describe: Callable[[Artifact, Work], Mapping[str, object]],
) -> Iterator[dg.MaterializeResult]:
    """Finds or makes the result of the context's asset and partition and gives what Dagster records of it.

    Gives nothing when the run was started for a fingerprint that is not the current one any more (tag m3po/wanted).
    Raises dg.Failure with one sentence for what a user can mend: an input not made yet or failing a blocking check, a
    store that can't be written.
    """
    asset = context.asset_key.to_user_string()
    part = (asset, str(context.partition_key) if context.has_partition_key else "")
    started = time.monotonic()

    def found_or_made() -> tuple[Artifact, bool, Mapping[str, object]]:
        work = _prepare(context, part, study, store)
        fingerprint, seen = _fingerprint(work, build)
        _tag_run(context, work, fingerprint)
        artifact = work.store.find(*part, fingerprint)
        reused = artifact is not None
        if artifact is None:
            artifact, reused = _make(work, fingerprint, (lambda _: seen) if seen else build)
        elif not complete(artifact, work.store):
            work.log(f"{label(part)}: an object it stands on is no longer in the store and is made again")
            build(work)
            reused = False
        return artifact, reused, describe(artifact, work)

    try:
        artifact, reused, description = _undamaged(found_or_made, part, store, context.log.warning)
    except Obsolete as change:
        context.log.info(f"{label(part)}: nothing to do for this run any more: {change}")
        context.instance.add_run_tags(context.run.run_id, {run_tags.OBSOLETE: "true"})
        return
    except (DagsterExecutionInterruptedError, KeyboardInterrupt):
        context.instance.add_run_tags(context.run.run_id, {run_tags.INTERRUPTED: "true"})
        raise
    except MENDABLE as error:
        said = what_to_do(part[0], error) if out_of_memory(error) else str(error)
        raise dg.Failure(f"{label(part)}: {said}", allow_retries=False) from error
    except RuntimeError as error:  # torch's word for a GPU that is full
        if not out_of_memory(error):
            raise
        raise dg.Failure(f"{label(part)}: {what_to_do(part[0], error)}", allow_retries=False) from error
    fingerprint = artifact.fingerprint
    failed = failed_checks(artifact)
    (_, main), *others = artifact.manifest.tables.items()
    rows = {"dagster/row_count": main.rows, **{f"{name} rows": table.rows for name, table in others}}
    seconds = time.monotonic() - started
    context.log.info(f"{label(part)} {'reused' if reused else 'made'} in {seconds:.1f} s: {fingerprint[:16]}")
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.data_version),
        tags={run_tags.FINGERPRINT: fingerprint[: run_tags.DIGITS]} | ({run_tags.BLOCKED: failed[0]} if failed else {}),
        # What a person looks for comes first, the bookkeeping last.
        metadata={
            **description,
            **rows,
            "reused": reused,
            "seconds": round(seconds, 3),
            "made in seconds": round(artifact.manifest.seconds, 3),
            FINGERPRINT_METADATA: fingerprint,
            "made from": dg.MetadataValue.json(
                {name: item.fingerprint for name, item in artifact.manifest.inputs.items()}
            ),
        },
        check_results=[
            dg.AssetCheckResult(
                passed=outcome["passed"],
                check_name=name,
                description=outcome["description"],
                metadata=outcome["figures"],
                severity=dg.AssetCheckSeverity.ERROR if outcome["blocking"] else dg.AssetCheckSeverity.WARN,
            )
            for name, outcome in artifact.manifest.metadata["checks"].items()
        ],
    )


def _prepare(context: dg.AssetExecutionContext, part: Part, study: StudyResource, store: StoreResource) -> Work:
    """Finds the inputs. Raises dg.Failure when one can't be built on, Obsolete when the run is for other ones."""
    loaded, opened, identities = study.load(), store.open(), store.identities()
    if part[1] not in partition_keys(STAGES[part[0]], loaded):
        raise dg.Failure(f"{label(part)}: the study file has no such partition any more: reload the definitions.")
    heads = read_heads(context.instance)
    work = Work(part, loaded, opened, identities, heads, {}, context.log.info, run_id=context.run.run_id)
    problem = _not_ready(work, store)
    # A run executed again by hand carries the tags of the old one.
    wanted = context.run.tags.get(run_tags.WANTED) if context.run.parent_run_id is None else None
    # What lies outside is looked at as it is now, whatever was seen when the run was asked for.
    if wanted and not STAGES[part[0]].outside:
        if problem:
            raise Obsolete(problem)
        now = made_from(part, loaded, identities, heads)
        if not now.startswith(wanted):
            raise Obsolete(f"asked for {wanted[:16]}, it would now be {now[:16]}")
    if problem:
        raise dg.Failure(f"{label(part)} {problem}", allow_retries=False)
    needed = inputs_of(*part, loaded)
    keys = [(*upstream, heads[upstream].fingerprint) for upstream in needed]
    for upstream, artifact in zip(needed, opened.find_all(keys), strict=True):
        if artifact is None:
            # A manifest that doesn't count is moved out of the way of those who only look whether it is there.
            opened.quarantine(*upstream, heads[upstream].fingerprint)
            raise dg.Failure(
                f"{label(part)}: the store {store.root} no longer holds {label(upstream)} "
                f"({heads[upstream].fingerprint[:16]}): materialise {label(upstream)} again; `m3po run` does it.",
                metadata={LOST_METADATA: label(upstream)},
                allow_retries=False,
            )
        if failed := failed_checks(artifact):
            raise dg.Failure(
                f"{label(part)} refuses {label(upstream)}: its check {failed[0]} failed: "
                f"{artifact.manifest.metadata['checks'][failed[0]]['description']}",
                allow_retries=False,
            )
        work.inputs[upstream] = artifact
    return work


def _undamaged(
    attempt: Callable[[], _Made], part: Part, store: StoreResource, log: Callable[[str], None], again: bool = True
) -> _Made:
    """What `attempt` gives. An object that it finds damaged is set aside.

    The step's own result is made again at once, but only once: a disk may spoil whatever is written. So is the attempt
    where the object, read again in full, is whole. For another's, raises dg.Failure that says so, for it is due again.
    """
    try:
        return attempt()
    except Damaged as damaged:
        lost, opened, place, whole = ArtifactKey(*damaged.key), store.open(), None, False
        try:
            if place := opened.quarantine(*lost):
                became = f"was set aside in {place}"
            else:
                whole = opened.find(*lost) is not None
                became = "is whole, read again in full" if whole else "is gone"
        except Busy as busy:
            became = f"was left where it is ({busy})"
        log(f"{damaged}; it {became}")
        if again and (whole or (place and lost[:2] == part)):
            return _undamaged(attempt, part, store, log, again=False)
        if whole:
            raise dg.Failure(
                f"{label(part)} met a damaged {lost}: {damaged.reason}. But it {became}: check this machine's memory "
                "and its way to the store, then run again.",
                allow_retries=False,
            ) from damaged
        raise dg.Failure(
            f"{label(part)} met a damaged {lost}: {damaged.reason}. It {became}, and is made again by what makes it; "
            "`m3po run` does it.",
            metadata={LOST_METADATA: label(lost[:2])},
            allow_retries=False,
        ) from damaged


def _not_ready(work: Work, store: StoreResource) -> str:
    """Why the inputs can't be built on as the event log has them; empty when they can."""
    needed = inputs_of(*work.part, work.study)
    missing = [label(upstream) for upstream in needed if upstream not in work.heads]
    if missing:
        return f"needs {', '.join(missing[:5])}, never materialised: materialise it first."
    for upstream in needed:
        # What the step reads is the outside as it is now; it must be what the event log says was looked at.
        if STAGES[upstream[0]].outside and work.heads[upstream].fingerprint != part_fingerprint(
            upstream, work.study, work.identities, work.heads
        ):
            return f"can't be made yet: {label(upstream)} changed since it was last looked at: materialise it first."
    if STAGES[work.part[0]].fan_in and (old := not_settled(work.part, work.study, work.heads)):
        shown = ", ".join(f"{label(item.part)} is {item.state}" for item in old[:3]) + (" ..." if len(old) > 3 else "")
        return (
            f"refuses inputs of mixed versions (judge, recipe, base model or settings): {shown}. "
            f"Bring these {len(old)} up to date first; `m3po run` does it in order."
        )
    return ""


def _fingerprint(work: Work, build: Callable[[Work], Built]) -> tuple[str, Built | None]:
    """The fingerprint of the result; of an observed part it holds what was found, so the part is asked first."""
    if not STAGES[work.part[0]].observed:
        return made_from(work.part, work.study, work.identities, work.heads), None
    seen = build(work)
    tables = {name: table_hash(check(table, schema, work.part[0])) for name, (table, schema) in seen.tables.items()}
    found = content_version(tables, {})
    return made_from(work.part, work.study, work.identities, work.heads, found), seen


def _tag_run(context: dg.AssetExecutionContext, work: Work, fingerprint: str) -> None:
    """Tags the run with what it is about, however it was started, so that runs can be searched for it."""
    asset, partition = work.part
    alone = len(context.run.asset_selection or ()) == 1
    tags = {
        **run_tags.of_partition(STAGES[asset].dimensions, partition),
        run_tags.STUDY: work.study.name,
        run_tags.FINGERPRINT if alone else f"{run_tags.FINGERPRINT}.{asset}": fingerprint[: run_tags.DIGITS],
        # On a cluster this is the step's machine, and the run's own process is elsewhere.
        **({} if current_deployment().clustered else {run_tags.MACHINE: this_machine()}),
    }
    context.instance.add_run_tags(context.run.run_id, tags)


def failed_checks(artifact: Artifact) -> list[str]:
    """Names of the blocking checks that an artifact failed."""
    outcomes = artifact.manifest.metadata["checks"].items()
    return [name for name, outcome in outcomes if outcome["blocking"] and not outcome["passed"]]


def _make(work: Work, fingerprint: str, build: Callable[[Work], Built]) -> tuple[Artifact, bool]:
    """Builds and commits. The second value is True when another writer committed the same fingerprint in between."""
    asset, partition = work.part
    stage = STAGES[asset]
    with work.open(*work.part, fingerprint) as draft:
        if draft.committed:
            return draft.committed, True
        work.draft = draft
        built = build(work)
        checks = {
            item.name: {
                "passed": item.passed,
                "blocking": item.blocking,
                "description": item.description,
                "figures": dict(item.figures),
            }
            for item in built.checks
        }
        artifact = draft.commit(
            built.tables,
            code_version=stage.code_version,
            settings=stage.settings(work.study, work.identities, partition),
            inputs={**work.provenance(), **built.made_with},
            metadata={**built.facts, "checks": checks},
        )
        return artifact, False
