"""filtered_instructions: which image-instruction pairs are kept (section 4.1)."""

from collections.abc import Iterator, Mapping

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import kept_share
from m3po_dagster.assets.display import counts, preview
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import gallery, histograms
from m3po_dagster.image_files import ImageOutsideRoot, ImageRoot
from m3po_dagster.inspector.links import prompts_url
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import DROPPED, FILTERED_INSTRUCTIONS
from m3po_dagster.study import Study

SHOWN = 6
"""Prompts shown with their image."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The filtered instructions, a partition a shard."""

    @stage_asset(
        "filtered_instructions", study, FILTERED_INSTRUCTIONS, group_name="data", kinds={"parquet"}, section="4.1"
    )
    def filtered_instructions(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The prompts (I, Q) that pass the filters (section 4.1). A partition a shard.

        In: the shard's records. Out: a row a prompt: image, conversation up to the turn to answer, the dataset's own
        answer. Every dropped record stands in a second table with its reason.
        """
        yield from materialise(context, study, store, filter_shard, describe)

    return [filtered_instructions]


def filter_shard(work: Work) -> Built:
    """Applies the study's filters to the shard's records."""
    from m3po_dagster.datasets.index import read_records
    from m3po_dagster.method.filtering import filter_records

    settings = work.study.dataset
    index = work.one("source_dataset").table()
    mine = index.filter(pc.equal(index["shard"], work.partition))
    known = dict(zip(mine["record"].to_pylist(), mine["record_sha256"].to_pylist(), strict=True))
    records = [record for record in read_records(settings) if record.record in known]
    changed = [record.record for record in records if record.sha256 != known[record.record]]
    if changed:
        raise ValueError(f"{settings.path}: record {changed[0]} changed since source_dataset: materialise that first")
    with work.progress("filtering", "record") as advance:
        result = filter_records(
            records,
            settings.image_root,
            work.study.filters,
            source=settings.name,
            turns=settings.turns,
            progress=advance,
        )
    kept = pa.Table.from_pylist(result.kept, schema=FILTERED_INSTRUCTIONS.schema)
    dropped = pa.Table.from_pylist(result.dropped, schema=DROPPED.schema)
    return Built(
        {"data": (kept, FILTERED_INSTRUCTIONS), "dropped": (dropped, DROPPED)},
        facts={"dropped by reason": dict(result.counts)},
        checks=(kept_share(len(kept), len(dropped)),),
    )


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """Counts, drops by reason, sizes, and a few prompts with their images."""
    table = artifact.table()
    shown = prompts_of(table.slice(0, SHOWN), work.study)
    lengths = [len(messages[-1]["text"]) for messages in table["messages"].to_pylist()]
    return {
        "prompts": len(table),
        "images": pc.count_distinct(table["image_sha256"]).as_py(),
        "dropped by reason": counts(artifact.manifest.metadata["dropped by reason"]),
        "dropped examples": preview(artifact.table("dropped")),
        "preview": preview(table, columns=["prompt_id", "image_uri", "width", "height", "messages", "reference"]),
        "sizes": histograms(
            {
                "characters of the instruction": lengths,
                "width, pixels": table["width"].to_pylist(),
                "height, pixels": table["height"].to_pylist(),
            }
        ),
        "thumbnails": gallery(
            ("instruction", "the dataset's answer"),
            [(prompt.image_path, (prompt.question, prompt.reference or "")) for prompt in shown],
        ),
        "inspector": dg.MetadataValue.url(prompts_url(shard=work.partition)),
    }


def prompts_of(table: pa.Table, study: Study) -> list[Prompt]:
    """The rows of a filtered_instructions table as prompts whose images lie under the study's image root.

    Raises ImageOutsideRoot for a table that names an image elsewhere: a store may come from somebody else.
    """
    root = ImageRoot(study.dataset.image_root)
    prompts = []
    for row in table.select(["prompt_id", "image_uri", "messages", "reference"]).to_pylist():
        try:
            path = root.locate(row["image_uri"])
        except ImageOutsideRoot as error:
            raise ImageOutsideRoot(f"filtered_instructions, image_uri of prompt {row['prompt_id']}: {error}") from None
        prompts.append(Prompt.from_row(row, path))
    return prompts
