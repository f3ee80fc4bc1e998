"""The pairs of two adapters side by side: same, changed, added, removed."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.lineage.answers import values
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.pairs import adapter_pairs
from m3po_dagster.lineage.profile import pairs_inputs
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.manifest import InputRef

KINDS = ("same", "changed", "added", "removed")
_COLUMNS = ("pair_id", "prompt_id", "chosen_id", "rejected_id")


def compared_pairs(manifests: Manifests, first: Artifact, second: Artifact) -> pa.Table:
    """A row a pair of either adapter, by prompt_id: most rules give a prompt one, some several.

    Columns: prompt_id, kind, and for each side (suffixes _1, _2) shard, pair_id, chosen_id, rejected_id. kind is same
    (the same two answers, chosen and rejected alike), changed (another pair of the prompt), added (in the second
    alone) or removed (in the first alone). Of a prompt's pairs those that are on both sides stand beside each other,
    the others in the order that they have. Raises StoreError when the store no longer holds the pairs of one of them.
    """
    tables = [_trained_on(manifests, adapter) for adapter in (first, second)]
    tables = [_numbered(table, other["pair_id"]) for table, other in zip(tables, reversed(tables), strict=True)]
    keys = ["prompt_id", "number"]
    joined = tables[0].join(tables[1], keys, keys, "full outer", left_suffix="_1", right_suffix="_2")
    joined = joined.sort_by([(name, "ascending") for name in keys]).combine_chunks()
    equal_ids = pc.fill_null(pc.equal(joined["pair_id_1"], joined["pair_id_2"]), False)
    rows = joined.append_column("row", pa.array(range(joined.num_rows))).filter(equal_ids)
    other_texts = pa.array(sorted(_with_other_texts(manifests, first, second, rows)), pa.int64())
    conditions = {
        "added": pc.is_null(joined["pair_id_1"]),
        "removed": pc.is_null(joined["pair_id_2"]),
        "changed": pc.or_(pc.invert(equal_ids), pc.is_in(pa.array(range(joined.num_rows)), value_set=other_texts)),
    }
    columns = [pc.cast(condition, pa.bool_()) for condition in conditions.values()]
    kind = pc.case_when(pc.make_struct(*columns, field_names=list(conditions)), *conditions, "same")
    names = [f"{name}_{side}" for side in (1, 2) for name in ("shard", "pair_id", "chosen_id", "rejected_id")]
    return joined.append_column("kind", kind).select(["prompt_id", "kind", *names])


def _numbered(table: pa.Table, theirs: pa.ChunkedArray) -> pa.Table:
    """With a column that tells which pairs of a prompt belong beside each other: those of both sides their id's."""
    both = pc.is_in(table["pair_id"], value_set=theirs).to_pylist()
    seen: Counter[str] = Counter()
    numbers = []
    for pair_id, prompt_id, shared in zip(
        table["pair_id"].to_pylist(), table["prompt_id"].to_pylist(), both, strict=True
    ):
        numbers.append(pair_id if shared else str(seen[prompt_id]))
        seen[prompt_id] += not shared
    return table.append_column("number", pa.array(numbers, pa.string()))


def counts_by_shard(pairs: pa.Table) -> list[dict[str, Any]]:
    """Pairs by kind, a row a shard: the shard a pair has in the second adapter, or else in the first."""
    counted: dict[str, dict[str, Any]] = {}
    shards = pc.coalesce(pairs["shard_2"], pairs["shard_1"])
    for shard, kind in zip(shards.to_pylist(), pairs["kind"].to_pylist(), strict=True):
        counted.setdefault(shard, {"shard": shard, **dict.fromkeys(KINDS, 0)})[kind] += 1
    return [counted[shard] for shard in sorted(counted)]


def _trained_on(manifests: Manifests, adapter: Artifact) -> pa.Table:
    if not pairs_inputs(manifests, adapter):
        return pa.table({name: pa.array([], pa.string()) for name in ("shard", *_COLUMNS)})
    return adapter_pairs(manifests, adapter, list(_COLUMNS))[1]


def _with_other_texts(manifests: Manifests, first: Artifact, second: Artifact, rows: pa.Table) -> Iterable[int]:
    """Numbers of the rows whose pair has the same id on both sides and yet other answers.

    A candidate's id is its prompt and its number: other weights or sampling settings give another text under the same
    id. Texts are read only where the candidates of a shard differ; what is no longer in the store is not the same.
    """
    sides = [_candidates(manifests, adapter) for adapter in (first, second)]
    for shards in rows.group_by(["shard_1", "shard_2"]).aggregate([]).to_pylist():
        refs = [side[shard] for side, shard in zip(sides, shards.values(), strict=True)]
        if refs[0] == refs[1] or (all(refs) and refs[0].data_version == refs[1].data_version):
            continue
        here = pc.and_(*(pc.equal(rows[name], shard) for name, shard in shards.items()))
        pairs = rows.filter(here).to_pylist()
        ids = {pair[name] for pair in pairs for name in ("chosen_id_1", "rejected_id_1")} - {None}
        texts = [values(manifests.used(ref) if ref else None, "text", ids) for ref in refs]
        for pair in pairs:
            answers = [name for name in (pair["chosen_id_1"], pair["rejected_id_1"]) if name is not None]
            if any(name not in texts[0] or texts[0][name] != texts[1].get(name) for name in answers):
                yield pair["row"]


def _candidates(manifests: Manifests, adapter: Artifact) -> dict[str, InputRef | None]:
    """{shard: the candidates an adapter's pairs were chosen from}."""
    found = {}
    for shard, ref in pairs_inputs(manifests, adapter).items():
        refs = manifests.inputs(manifests.used(ref), "candidates")
        found[shard] = refs[0] if refs else None
    return found
