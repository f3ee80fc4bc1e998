"""selection_sweep: what alpha and delta would select, over all shards, before anything is trained (section 4.6)."""

from collections.abc import Iterator, Mapping

import dagster as dg
import numpy as np
import pyarrow as pa

from m3po_dagster.assets.display import column_schema, counts, rows_table
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pairs import joined, numerics_of
from m3po_dagster.assets.pictures import curves, heat_map
from m3po_dagster.inspector.links import tune_url
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import SWEEP, SWEEP_NO_PAIR, SWEEP_OVERLAP
from m3po_dagster.study import Study

CURVES = {
    "overlap": "pairs as at the default point",
    "active_penalty_share": "pairs whose penalty is active",
    "hard_negative_share": "pairs whose R_l is likelier than R_w",
    "mean_length_difference": "mean tokens of R_w minus R_l",
    "mean_mas_gap": "mean MAS gap",
    "mean_logp_gap": "mean confidence gap, nats",
}

SAME_AT_EVERY_POINT = ("n_pairs", "n_no_pair", "top_tie_share", "no_pair_share")

HOW_TO_READ = """\
R_w is the same at every point; alpha and delta only move R_l. So, before a GPU is spent:

* **overlap** (the heat map, and the table `overlap` of this artifact): the share of prompts with the same pair at two
  points. Points that share nearly all pairs train on nearly the same data: take one of them. `identical_to` names the
  row of an earlier point with the very same pairs; at alpha = 0 delta has no effect.
* **active penalty**: near 0, alpha and delta change little, since what the MAS prefers is not penalised anyway; near 1,
  delta excuses nobody.
* **hard negatives**: R_l is likelier than R_w, a mistake that the model believes in. This is what a larger alpha buys.
* **MAS gap**: what it costs: the smaller, the less R_l is worse than R_w, and the more a judge's noise decides.
* **length**: where R_l is mostly the longer one, training on these pairs also says "be shorter". A bound on the lengths
  (`max_length_difference`) is the remedy.
* **no pair, ties**: the same at every point. Many ties at the top mean that the judge can't tell the best answers
  apart, and confidence chooses R_w among them.
"""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The sweep over all shards."""

    @stage_asset("selection_sweep", study, SWEEP, group_name="selection", kinds={"numpy"}, section="4.6")
    def selection_sweep(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """What alpha and delta would select, over all shards (section 4.6).

        In: the scores of every shard. Out: a row a point of the study's grid: pairs, hard negatives, active penalties,
        gaps, lengths; the overlap between every two points; why prompts give no pair. It costs one pass over the
        scores, before any GPU is spent on training.
        """
        yield from materialise(context, study, store, sweep_all, describe_sweep)

    return [selection_sweep]


def sweep_all(work: Work) -> Built:
    """The whole grid over all shards."""
    from m3po_dagster.method.selection_sweep import sweep

    numerics_of(work, *work.all("logprob_table").values())
    tables = zip(*(work.all(name).values() for name in ("candidates", "mas_table", "logprob_table")), strict=True)
    grid = work.study.sweep
    result = sweep((joined(*some) for some in tables), grid.alpha, grid.delta)
    return Built(
        {
            "data": (result.points.cast(SWEEP.schema), SWEEP),
            "overlap": (result.overlap.cast(SWEEP_OVERLAP.schema), SWEEP_OVERLAP),
            "no_pair": (result.no_pair.cast(SWEEP_NO_PAIR.schema), SWEEP_NO_PAIR),
        }
    )


def describe_sweep(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """The table, its curves over alpha, how much any two points have in common, and how to read it all."""
    table, overlap, no_pair = (artifact.table(name) for name in ("data", "overlap", "no_pair"))
    rows = table.to_pylist()
    by_delta = {delta: [row for row in rows if row["delta"] == delta] for delta in work.study.sweep.delta}
    figures = {
        title: {
            f"delta {delta:g}": ([row["alpha"] for row in some], [row[name] for row in some])
            for delta, some in by_delta.items()
        }
        for name, title in CURVES.items()
    }
    names = [f"{row['alpha']:g} / {row['delta']:g}" for row in rows]
    shared = np.array(overlap["overlap"].to_numpy(), dtype=float).reshape(len(names), len(names))
    shown = pa.schema([field for field in table.schema if field.name not in SAME_AT_EVERY_POINT])
    return {
        "how to read": dg.MetadataValue.md(HOW_TO_READ),
        "prompts with a pair": rows[0]["n_pairs"],
        "no pair by reason": counts(
            dict(zip(*(no_pair[name].to_pylist() for name in ("reason", "n_prompts")), strict=True))
        ),
        "prompts tied at the top": dg.MetadataValue.float(rows[0]["top_tie_share"] or 0.0),
        "distinct points": sum(row["identical_to"] is None for row in rows),
        "preview": rows_table(rows, column_schema(shown)),
        "curves": curves(figures, "alpha"),
        "overlap": heat_map("share of pairs in common, by alpha / delta", names, shared),
        "inspector": dg.MetadataValue.url(tune_url()),
    }
