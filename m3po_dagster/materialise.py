"""One step of the graph: find the inputs, find or make the result, commit it, tell Dagster.

Every asset goes through `materialise`; it is where fingerprints, reuse, refusal of bad inputs, locks and metadata are
handled, once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import dagster as dg
import pyarrow as pa

from m3po_dagster.assets.checks import Check
from m3po_dagster.current import FINGERPRINT_METADATA, FINGERPRINT_TAG, complete, read_heads
from m3po_dagster.graph import STAGES, Part, inputs_of, label, part_fingerprint, partition_keys
from m3po_dagster.identity import Identities
from m3po_dagster.progress import progress
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.draft import Draft
from m3po_dagster.storage.errors import Busy, StoreError
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import TableSchema
from m3po_dagster.study import Study

MENDABLE = (StoreError, OSError, ValueError, FloatingPointError)
"""What a user can mend; the message says where and how, a stack trace adds nothing."""


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
    inputs: dict[Part, Artifact]
    log: Callable[[str], None]
    draft: Draft | None = None

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


def materialise(
    context: dg.AssetExecutionContext,
    study: StudyResource,
    store: StoreResource,
    build: Callable[[Work], Built],
    describe: Callable[[Artifact, Work], Mapping[str, object]],
) -> dg.MaterializeResult:
    """Finds or makes the result of the context's asset and partition and gives what Dagster records of it.

    Raises dg.Failure with one sentence for what a user can mend: an input not made yet or failing a blocking check, a
    second writer at work, a store that can't be written.
    """
    asset = context.asset_key.to_user_string()
    part = (asset, str(context.partition_key) if context.has_partition_key else "")
    started = time.monotonic()
    try:
        work, fingerprint = _prepare(context, part, study, store)
        artifact = work.store.find(*part, fingerprint)
        reused = artifact is not None
        if artifact is None:
            artifact, reused = _make(work, fingerprint, build)
        elif not complete(artifact, work.store):
            work.log(f"{label(part)}: an object it stands on is no longer in the store and is made again")
            build(work)
            reused = False
        description = describe(artifact, work)
    except Busy as error:
        raise dg.Failure(f"{label(part)}: {error}", allow_retries=True) from error
    except MENDABLE as error:
        raise dg.Failure(f"{label(part)}: {error}", allow_retries=False) from error
    rows = {f"{name} rows": table.rows for name, table in artifact.manifest.tables.items()}
    seconds = time.monotonic() - started
    context.log.info(f"{label(part)} {'reused' if reused else 'made'} in {seconds:.1f} s: {fingerprint[:16]}")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.data_version),
        tags={FINGERPRINT_TAG: fingerprint[:32]},
        metadata={
            "reused": reused,
            FINGERPRINT_METADATA: fingerprint,
            "seconds": round(seconds, 3),
            "made in seconds": round(artifact.manifest.seconds, 3),
            **rows,
            "made from": dg.MetadataValue.json(
                {name: item.fingerprint for name, item in artifact.manifest.inputs.items()}
            ),
            **description,
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


def _prepare(
    context: dg.AssetExecutionContext, part: Part, study: StudyResource, store: StoreResource
) -> tuple[Work, str]:
    loaded, opened, identities = study.load(), store.open(), store.identities()
    heads = read_heads(context.instance, STAGES[part[0]].inputs)
    if part[1] not in partition_keys(STAGES[part[0]], loaded):
        raise dg.Failure(f"{label(part)}: the study file has no such partition any more: reload the definitions.")
    wanted = inputs_of(*part, loaded)
    missing = [label(upstream) for upstream in wanted if upstream not in heads]
    if missing:
        raise dg.Failure(
            f"{label(part)} needs {', '.join(missing[:5])}, never materialised: materialise it first.",
            allow_retries=False,
        )
    inputs = {}
    for upstream in wanted:
        # What the step reads is the outside as it is now; it must be what the event log says was looked at.
        outside = STAGES[upstream[0]].outside
        if outside and heads[upstream].fingerprint != part_fingerprint(upstream, loaded, identities, heads):
            raise dg.Failure(
                f"{label(part)}: {label(upstream)} changed since it was last looked at: materialise it first.",
                allow_retries=False,
            )
        artifact = opened.find(*upstream, heads[upstream].fingerprint)
        if artifact is None:
            raise dg.Failure(
                f"{label(part)}: the store {store.root} no longer holds {label(upstream)} "
                f"({heads[upstream].fingerprint[:16]}): materialise {label(upstream)} again.",
                allow_retries=False,
            )
        failed = [name for name, outcome in artifact.manifest.metadata["checks"].items() if _blocks(outcome)]
        if failed:
            raise dg.Failure(
                f"{label(part)} refuses {label(upstream)}: its check {failed[0]} failed: "
                f"{artifact.manifest.metadata['checks'][failed[0]]['description']}",
                allow_retries=False,
            )
        inputs[upstream] = artifact
    fingerprint = part_fingerprint(part, loaded, identities, heads)
    return Work(part, loaded, opened, identities, inputs, context.log.info), fingerprint


def _blocks(outcome: Mapping[str, object]) -> bool:
    return bool(outcome["blocking"]) and not outcome["passed"]


def _make(work: Work, fingerprint: str, build: Callable[[Work], Built]) -> tuple[Artifact, bool]:
    """Builds and commits. The second value is True when another writer committed the same fingerprint in between."""
    asset, partition = work.part
    stage = STAGES[asset]
    with work.store.open(*work.part, fingerprint) as draft:
        if draft.committed:
            return draft.committed, True
        work.draft = draft
        built = build(work)
        checks = {
            check.name: {
                "passed": check.passed,
                "blocking": check.blocking,
                "description": check.description,
                "figures": dict(check.figures),
            }
            for check in built.checks
        }
        artifact = draft.commit(
            built.tables,
            code_version=stage.code_version,
            settings=stage.settings(work.study, work.identities, partition),
            inputs={**work.provenance(), **built.made_with},
            metadata={**built.facts, "checks": checks},
        )
        return artifact, False
