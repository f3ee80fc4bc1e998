"""preference_pairs and selection_sweep: which answers are preferred to which (section 3.5)."""

from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from m3po_dagster.assets.checks import pair_yield, pairs_well_formed
from m3po_dagster.assets.display import counts, curves, histogram, markdown_table, preview
from m3po_dagster.assets.options import options
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.tables import DROPPED, PAIRS, SWEEP
from m3po_dagster.study import Study


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """Pairs, a partition a shard and recipe; and the sweep over all shards."""

    @dg.asset(**options("preference_pairs", study, PAIRS), group_name="selection", kinds={"numpy", "parquet"})
    def preference_pairs(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """R_w and R_l of every prompt by the recipe's rule (section 3.5, equations 1 to 3), or why there is none."""
        return materialise(context, study, store, select_shard, describe_pairs)

    @dg.asset(**options("selection_sweep", study, SWEEP), group_name="selection", kinds={"numpy"})
    def selection_sweep(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> dg.MaterializeResult:
        """What alpha and delta would select over all shards (section 4.6), before any GPU is spent on training."""
        return materialise(context, study, store, sweep_all, describe_sweep)

    return [preference_pairs, selection_sweep]


def joined(candidates: Artifact, mas: Artifact, logprobs: Artifact) -> pa.Table:
    """One row a candidate: text, finish reason, scores, log-probs. The three tables hold the same rows in order."""
    left = candidates.table(columns=["candidate_id", "prompt_id", "k", "text", "finish_reason"])
    outside, inside = mas.table(), logprobs.table(columns=["candidate_id", "sum_logp", "n_tokens"])
    for name, other in (("mas_table", outside), ("logprob_table", inside)):
        if not left["candidate_id"].equals(other["candidate_id"]):
            raise StoreError(f"candidates and {name} hold different candidates: materialise {name} again")
    for name in outside.column_names:
        if name not in ("candidate_id", "prompt_id", "status"):
            left = left.append_column(name, outside[name])
    return left.append_column("sum_logp", inside["sum_logp"]).append_column("n_tokens", inside["n_tokens"])


def select_shard(work: Work) -> Built:
    """The recipe's pairs; a recipe that does not train has none and drops no prompt."""
    from m3po_dagster.method.selection import select_pairs

    recipe = work.study.recipes[work.partition.split("|")[0]]
    pairs, dropped, stats = PAIRS.schema.empty_table(), DROPPED.schema.empty_table(), {}
    if recipe.selection is not None:
        table = joined(work.one("candidates"), work.one("mas_table"), work.one("logprob_table"))
        result = select_pairs(table, recipe.selection)
        pairs, stats = result.pairs.cast(PAIRS.schema), dict(result.stats)
        dropped = result.dropped.rename_columns({"prompt_id": "item_id"}).cast(DROPPED.schema)
    by_reason = {item["values"]: item["counts"] for item in dropped["reason"].value_counts().to_pylist()}
    return Built(
        {"data": (pairs, PAIRS), "dropped": (dropped, DROPPED)},
        facts={"stats": stats, "dropped by reason": by_reason},
        checks=(pairs_well_formed(pairs), pair_yield(len(pairs), len(dropped))),
    )


def describe_pairs(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """How many pairs, why prompts gave none, how wide the gaps are."""
    table = artifact.table()
    facts = artifact.manifest.metadata
    return {
        "pairs": len(table),
        "no pair by reason": counts(facts["dropped by reason"]),
        "statistics": dg.MetadataValue.json(facts["stats"]),
        "MAS gap": histogram(table["mas_gap"].drop_null().to_numpy(), "MAS(R_w) - MAS(R_l)"),
        "confidence gap": histogram(table["logp_gap"].drop_null().to_numpy(), "confidence of R_w minus that of R_l"),
        "preview": preview(table),
    }


def sweep_all(work: Work) -> Built:
    """The whole grid over all shards."""
    from m3po_dagster.method.selection_sweep import sweep

    tables = zip(*(work.all(name).values() for name in ("candidates", "mas_table", "logprob_table")), strict=True)
    grid = work.study.sweep
    result = sweep((joined(*some) for some in tables), grid.alpha, grid.delta)
    return Built({"data": (result.cast(SWEEP.schema), SWEEP)})


def describe_sweep(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The table and its curves over alpha."""
    table = artifact.table()
    rows = table.to_pylist()
    shares = ("overlap", "active_penalty_share", "hard_negative_share")
    pictures = {
        name: curves(
            {
                f"delta {delta:g}": (
                    [row["alpha"] for row in rows if row["delta"] == delta],
                    [row[name] for row in rows if row["delta"] == delta],
                )
                for delta in work.study.sweep.delta
            },
            name.replace("_", " "),
            "alpha",
        )
        for name in shares
    }
    return {"grid": markdown_table(rows, table.column_names), **pictures}
