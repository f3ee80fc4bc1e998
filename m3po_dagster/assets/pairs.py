"""preference_pairs: which answers are preferred to which (section 3.5)."""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import pair_yield, pairs_well_formed
from m3po_dagster.assets.display import counts, preview
from m3po_dagster.assets.instructions import prompts_of
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import gallery, histograms
from m3po_dagster.graph import label
from m3po_dagster.inspector.links import prompts_url
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.generation.numerics import only_one
from m3po_dagster.method.selection_settings import MAS
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.tables import DROPPED, PAIRS
from m3po_dagster.study import Study

SHOWN = 4
"""Pairs shown with their image."""

NUMERICS = "numerics"
"""Under which name a manifest says with which numerics its reference log-probs were computed."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """Pairs, a partition a shard and recipe."""

    @stage_asset("preference_pairs", study, PAIRS, group_name="selection", kinds={"numpy", "parquet"}, section="3.5")
    def preference_pairs(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """Which answer is preferred to which, R_w and R_l of every prompt (section 3.5, equations 1 to 3).

        In: MAS and log-probs of the shard's candidates, and the recipe's rule. Out: one pair a prompt, or several by
        rule margin_pairs, with gaps and reference log-probs; a prompt without a pair stands in a second table with its
        reason. A partition a recipe and shard; seconds of work, no model.
        """
        yield from materialise(context, study, store, select_shard, describe_pairs)

    return [preference_pairs]


def joined(candidates: Artifact, mas: Artifact, logprobs: Artifact, scores: Sequence[str] = (MAS,)) -> pa.Table:
    """One row a candidate: text, finish reason, log-probs, and `scores`: MAS, and scorers' columns where named.

    The three tables hold the same rows in order. Only what selection reads is read: token lists and a judge's words are
    most of the tables' bytes.
    """
    table = candidates.table(columns=["candidate_id", "prompt_id", "k", "text", "finish_reason"])
    for name, other, columns in (("mas_table", mas, scores), ("logprob_table", logprobs, ["sum_logp", "n_tokens"])):
        found = other.table(columns=["candidate_id", *columns])
        if not table["candidate_id"].equals(found["candidate_id"]):
            raise StoreError(f"candidates and {name} hold different candidates: materialise {name} again")
        for column in columns:
            table = table.append_column(column, found[column])
    return table


def select_shard(work: Work) -> Built:
    """The recipe's pairs; a recipe that does not train has none and drops no prompt."""
    from m3po_dagster.method.selection import select_pairs

    recipe = work.study.recipes[work.partition.split("|")[0]]
    pairs, dropped, stats, numerics = PAIRS.schema.empty_table(), DROPPED.schema.empty_table(), {}, None
    if recipe.selection is not None:
        numerics = numerics_of(work, work.one("logprob_table"))
        tables = (work.one(name) for name in ("candidates", "mas_table", "logprob_table"))
        result = select_pairs(joined(*tables, scores=recipe.selection.score_columns), recipe.selection)
        pairs, stats = result.pairs.cast(PAIRS.schema), dict(result.stats)
        dropped = result.dropped.rename_columns({"prompt_id": "item_id"}).cast(DROPPED.schema)
    by_reason = {item["values"]: item["counts"] for item in dropped["reason"].value_counts().to_pylist()}
    return Built(
        {"data": (pairs, PAIRS), "dropped": (dropped, DROPPED)},
        facts={"stats": stats, "dropped by reason": by_reason, NUMERICS: numerics},
        checks=(pairs_well_formed(pairs), pair_yield(pc.count_distinct(pairs["prompt_id"]).as_py(), len(dropped))),
    )


def numerics_of(work: Work, *logprobs: Artifact) -> str | None:
    """The one numerics of log-prob tables; None without rows. Raises MixedNumerics for more."""
    found = [name for table in logprobs for name in table.table(columns=["numerics"])["numerics"].unique().to_pylist()]
    return only_one(found, label(work.part))


def describe_pairs(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """How many pairs, why prompts gave none, how wide the gaps are, and some pairs with their image."""
    table, facts = artifact.table(), artifact.manifest.metadata
    recipe, shard = work.partition.split("|")
    return {
        "pairs": len(table),
        "prompts with a pair": pc.count_distinct(table["prompt_id"]).as_py(),
        "no pair by reason": counts(facts["dropped by reason"]),
        "statistics": dg.MetadataValue.json(facts["stats"]),
        "preview": preview(table, columns=["chosen_id", "rejected_id", "mas_gap", "logp_gap", "m3p_score"]),
        "gaps": histograms(
            {
                "MAS(R_w) - MAS(R_l)": table["mas_gap"].to_pylist(),
                "confidence of R_w minus that of R_l": table["logp_gap"].to_pylist(),
                "S(R_l), equation 2": table["m3p_score"].to_pylist(),
            }
        ),
        "thumbnails": pictured(table.slice(0, SHOWN), work),
        "inspector": dg.MetadataValue.url(prompts_url(shard=shard, recipe=recipe)),
    }


def pictured(pairs: pa.Table, work: Work) -> dg.MarkdownMetadataValue:
    """Pairs as a person judges them: image, instruction, both answers."""
    candidates = work.one("candidates")
    texts = candidates.table(columns=["candidate_id", "text"])
    shown = pa.chunked_array([*pairs["chosen_id"].chunks, *pairs["rejected_id"].chunks], pa.string())
    texts = texts.filter(pc.is_in(texts["candidate_id"], value_set=shown))
    said = dict(zip(texts["candidate_id"].to_pylist(), texts["text"].to_pylist(), strict=True))
    (source,) = (item for item in candidates.manifest.inputs.values() if item.asset == "filtered_instructions")
    artifact = work.store.find(source.asset, source.partition, source.fingerprint)
    prompts = prompts_of(artifact.table(), work.study) if artifact else []
    known = {prompt.prompt_id: prompt for prompt in prompts}
    rows = []
    for row in pairs.to_pylist():
        prompt = known.get(row["prompt_id"])
        asked, gap = prompt.question if prompt else "", row["mas_gap"]
        cells = (asked, said[row["chosen_id"]], said.get(row["rejected_id"], ""), "" if gap is None else gap)
        rows.append((prompt.image_path if prompt else None, cells))
    return gallery(("instruction", "chosen, R_w", "rejected, R_l", "MAS gap"), rows)
