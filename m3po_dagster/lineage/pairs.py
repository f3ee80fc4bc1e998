"""The preference pairs an adapter was trained on."""

import pyarrow as pa

from m3po_dagster.lineage.manifests import Manifests, key_of
from m3po_dagster.lineage.profile import pairs_inputs
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError

SHARD_COLUMN = pa.field("shard", pa.string(), nullable=False, metadata={"description": "the pairs' shard"})


def adapter_pairs(
    manifests: Manifests, adapter: Artifact, columns: list[str] | None = None
) -> tuple[dict[str, str], pa.Table]:
    """Which pairs trained an adapter: {shard: fingerprint of its pairs}, and the pairs with their shard in front.

    Raises StoreError when it was trained on no pairs (there is no artifact of pairs among its inputs), or when some of
    its pairs are not in the store with the content it was trained on.
    """
    inputs = pairs_inputs(manifests, adapter)
    if not inputs:
        raise StoreError(f"{adapter.key} was not trained on preference pairs")
    tables = []
    for shard, ref in inputs.items():
        artifact = manifests.used(ref)
        if artifact is None:
            what = "have other content now" if manifests.find(key_of(ref)) else "are no longer in the store"
            raise StoreError(f"the pairs of shard {shard} that trained {adapter.key}, {key_of(ref)}, {what}")
        table = artifact.table(columns=columns)
        tables.append(table.add_column(0, SHARD_COLUMN, pa.repeat(pa.scalar(shard), table.num_rows)))
    return {shard: ref.fingerprint for shard, ref in inputs.items()}, pa.concat_tables(tables)
