"""What every asset definition has in common, taken from the graph table and the study."""

import hashlib

import dagster as dg

from m3po_dagster.assets.checks import check_specs
from m3po_dagster.assets.display import column_schema
from m3po_dagster.graph import STAGES, Stage
from m3po_dagster.identity import Identities
from m3po_dagster.partitions import partitions_of
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.storage.tables import TableSchema
from m3po_dagster.study import Study


def options(asset: str, study: Study, schema: TableSchema | None = None) -> dict:
    """Keyword arguments for `@dg.asset`: name, inputs, partitions, code version, checks and columns.

    The code version holds a hash of the settings that matter, so that Dagster shows an asset as stale when the study
    file changes them. What lies outside has an identity asset of its own instead.
    """
    stage = STAGES[asset]
    version = stage.code_version
    if not stage.outside:
        settings = stage.settings(study, Identities(_never), "")
        version = f"{version}-{hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:8]}"
    return {
        "name": asset,
        "deps": [_dependency(stage, STAGES[name]) for name in stage.inputs],
        "partitions_def": partitions_of(stage, study),
        "code_version": version,
        "check_specs": check_specs(asset) or None,
        "metadata": {"dagster/column_schema": column_schema(schema.schema)} if schema else None,
    }


def _dependency(stage: Stage, upstream: Stage) -> dg.AssetDep:
    """All partitions of an input that shares no dimension; Dagster would otherwise match both keys by name."""
    apart = stage.dimensions and upstream.dimensions and not set(stage.dimensions) & set(upstream.dimensions)
    return dg.AssetDep(upstream.asset, partition_mapping=dg.AllPartitionMapping() if apart else None)


def _never(path) -> str:
    raise AssertionError(f"a code version must not read files, asked for {path}")
