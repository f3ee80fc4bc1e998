"""filtered_instructions: which image-instruction pairs are kept (section 4.1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.assets.checks import kept_share, uncontaminated
from m3po_dagster.assets.display import preview, rows_table
from m3po_dagster.assets.options import stage_asset
from m3po_dagster.assets.pictures import contact_sheet, gallery, histograms
from m3po_dagster.assets.records import records_file
from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.image_files import ImageOutsideRoot
from m3po_dagster.inspector.links import prompts_url
from m3po_dagster.materialise import Built, Work, materialise
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.resources.study import StoreResource, StudyResource
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.tables import DROPPED, FILTERED_INSTRUCTIONS
from m3po_dagster.study import Study

SHOWN, SHEET = 6, 48
"""Prompts shown with their image; kept images on the contact sheet."""
EXAMPLE_CHARACTERS = 400
BENCHMARK_COLUMNS = {
    "benchmark": "benchmark",
    "image_uri": "image_uri",
    "sha256": "image_sha256",
    "phash": "phash",
}
"""What the filters call the columns of benchmark_data's images."""


def assets(study: Study) -> list[dg.AssetsDefinition]:
    """The filtered instructions, a partition a shard."""

    @stage_asset(
        "filtered_instructions", study, FILTERED_INSTRUCTIONS, group_name="data", kinds={"parquet"}, section="4.1"
    )
    def filtered_instructions(
        context: dg.AssetExecutionContext, study: StudyResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:
        """The prompts (I, Q) that pass the filters (section 4.1). A partition a shard.

        In: the shard's records, and the benchmarks' images, which no prompt may show. Out: a row a prompt: image,
        conversation up to the turn to answer, the dataset's own answer. What is dropped stands in a second table with
        its reason.
        """
        yield from materialise(context, study, store, filter_shard, describe)

    return [filtered_instructions]


def filter_shard(work: Work) -> Built:
    """Applies the study's filters to the shard's records; other shards are known by their images' hashes alone."""
    from m3po_dagster.datasets.shards import columns_of, read_shard
    from m3po_dagster.method.filtering import BenchmarkImages, ImagesSeen, contaminated, filter_rows
    from m3po_dagster.method.filtering.images_seen import COLUMNS
    from m3po_dagster.method.known_images.known import NAMES

    dataset, settings, source = work.study.dataset, work.study.filters, work.one("source_dataset")
    files = {shard: records_file(source, shard) for shard in work.study.shards}
    others = settings.near_duplicate is not False or settings.contamination is not False
    benchmarks = BenchmarkImages(
        **{
            field: work.one("benchmark_data").table("images")[column].to_pylist()
            for field, column in BENCHMARK_COLUMNS.items()
        }
    )
    with work.progress("filtering", "record") as advance:
        result = filter_rows(
            read_shard(files[work.partition]),
            settings,
            turns=dataset.turns,
            images=ImagesSeen.of(columns_of(files.values(), COLUMNS), list(dataset.sources)) if others else None,
            benchmarks=benchmarks,
            progress=advance,
        )
    # Switched off, the filter drops nothing; the check still knows every list.
    known = settings.contamination.known if settings.contamination else NAMES
    kept = pa.Table.from_pylist(result.kept, schema=FILTERED_INSTRUCTIONS.schema)
    dropped = pa.Table.from_pylist(result.dropped, schema=DROPPED.schema)
    return Built(
        {"data": (kept, FILTERED_INSTRUCTIONS), "dropped": (dropped, DROPPED)},
        facts={"drops": [asdict(drop) for drop in result.drops], "assistant first": result.assistant_first},
        checks=(kept_share(len(kept), len(dropped)), uncontaminated(contaminated(kept, known, benchmarks))),
    )


def describe(artifact: Artifact, work: Work) -> Mapping[str, object]:
    """Counts, drops by filter and reason with examples, sizes, and kept prompts with their images."""
    table = artifact.table()
    shown = prompts_of(table.slice(0, SHOWN), work.study)
    lengths = [len(messages[-1]["text"]) for messages in table["messages"].to_pylist()]
    return {
        "prompts": len(table),
        "images": pc.count_distinct(table["image_sha256"]).as_py(),
        "drops": drops_table(artifact.manifest.metadata["drops"]),
        "conversations that an assistant turn began, left out": artifact.manifest.metadata["assistant first"],
        "preview": preview(table, columns=["prompt_id", "image_uri", "width", "height", "messages", "reference"]),
        "sizes": histograms(
            {
                "characters of the instruction": lengths,
                "width, pixels": table["width"].to_pylist(),
                "height, pixels": table["height"].to_pylist(),
            }
        ),
        "kept images": contact_sheet(_spread(table, work.study)),
        "thumbnails": gallery(
            ("instruction", "the dataset's answer"),
            [(prompt.image_path, (prompt.question, prompt.reference or "")) for prompt in shown],
        ),
        "inspector": dg.MetadataValue.url(prompts_url(shard=work.partition)),
    }


def drops_table(drops: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """What each filter dropped, in the order in which they are asked, with examples; a row for one without drops."""
    rows = []
    for name, found in groupby(drops, key=lambda drop: drop["filter"]):
        reasons = list(found)
        rows += [
            {
                "filter": name,
                "reason": drop["reason"],
                "dropped": drop["count"],
                "examples": "; ".join(f"{item}: {detail}" for item, detail in drop["examples"]),
            }
            for drop in reasons
            if drop["count"]
        ] or [{"filter": name, "reason": ", ".join(drop["reason"] for drop in reasons), "dropped": 0}]
    return rows_table(rows, ["filter", "reason", "dropped", "examples"], cell=EXAMPLE_CHARACTERS)


def _spread(table: pa.Table, study: Study) -> list[Path]:
    """Paths of distinct kept images, evenly spread over the shard."""
    places = table.group_by(["source", "image_uri"], use_threads=False).aggregate([]).to_pylist()
    images = DatasetImages(study.dataset)
    step = max(1, len(places) / SHEET)
    chosen = [places[int(number * step)] for number in range(min(SHEET, len(places)))]
    return [images.locate(place["source"], place["image_uri"]) for place in chosen]


def prompts_of(table: pa.Table, study: Study) -> list[Prompt]:
    """The rows of a filtered_instructions table as prompts whose images lie in the folders that the study names.

    Raises ImageOutsideRoot for a table that names an image elsewhere: a store may come from somebody else.
    """
    images = DatasetImages(study.dataset)
    prompts = []
    for row in table.select(["prompt_id", "source", "image_uri", "messages", "reference"]).to_pylist():
        try:
            path = images.locate(row["source"], row["image_uri"])
        except ImageOutsideRoot as error:
            raise ImageOutsideRoot(f"filtered_instructions, image_uri of prompt {row['prompt_id']}: {error}") from None
        prompts.append(Prompt.from_row(row, path))
    return prompts
