"""What every asset definition has in common, taken from the graph table and the study."""

import hashlib
import inspect
from collections.abc import Callable

import dagster as dg

from m3po_dagster.assets.checks import check_specs
from m3po_dagster.assets.display import column_schema
from m3po_dagster.deployment import current_deployment
from m3po_dagster.graph import STAGES, Stage
from m3po_dagster.identity import Identities
from m3po_dagster.partitions import partitions_of
from m3po_dagster.resources import gpu
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.storage.tables import TableSchema
from m3po_dagster.study import Study

MAX_TAG = 63
"""Characters a tag may have."""


def stage_asset(
    asset: str, study: Study, schema: TableSchema, *, group_name: str, kinds: set[str], section: str
) -> Callable[[Callable], dg.AssetsDefinition]:
    """Decorates the function of one asset: name, inputs, partitions, code version, checks, columns, owners and tags.

    Its docstring is what the UI says of the asset; `section` is where the paper speaks of it first. What its step is
    given where it runs is the deployment's to say.
    The function may yield nothing: a run asked for something that changed meanwhile makes no result and is no failure.
    Dagster allows that, checks included, for a multi-asset that can be run in part; so each asset is one of one.
    The code version holds a hash of the settings that matter, so that Dagster shows an asset as stale when the study
    file changes them. What lies outside has an identity asset of its own instead.
    """
    stage = STAGES[asset]
    kind, deployment = gpu.kind_of(stage), current_deployment()
    version = stage.code_version
    if not stage.outside:
        settings = stage.settings(study, Identities(_never), "")
        version = f"{version}-{hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:8]}"

    def decorate(function: Callable) -> dg.AssetsDefinition:
        spec = dg.AssetSpec(
            asset,
            deps=[_dependency(stage, STAGES[name]) for name in stage.inputs],
            description=inspect.cleandoc(function.__doc__),
            metadata={"dagster/column_schema": column_schema(schema.schema)},
            group_name=group_name,
            kinds=kinds,
            owners=study.owners,
            tags={"m3po/study": study.name[:MAX_TAG], "m3po/section": section},
            code_version=version,
            skippable=True,
        )
        return dg.multi_asset(
            name=asset,
            specs=[spec],
            check_specs=check_specs(asset),
            partitions_def=partitions_of(stage, study),
            can_subset=True,
            pool=gpu.pool_of(kind),
            op_tags=gpu.op_tags(deployment, kind),
            retry_policy=gpu.retry_policy(deployment),
        )(function)

    return decorate


def _dependency(stage: Stage, upstream: Stage) -> dg.AssetDep:
    """All partitions of an input that shares no dimension; Dagster would otherwise match both keys by name."""
    apart = stage.dimensions and upstream.dimensions and not set(stage.dimensions) & set(upstream.dimensions)
    return dg.AssetDep(upstream.asset, partition_mapping=dg.AllPartitionMapping() if apart else None)


def _never(path) -> str:
    raise AssertionError(f"a code version must not read files, asked for {path}")
