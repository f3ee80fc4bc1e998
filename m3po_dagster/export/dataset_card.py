"""The card of exported pairs: what they are, how to load them, and what they were made from."""

from collections.abc import Sequence

from m3po_dagster.export.card_text import PAPER, card, licence_rows, made_by, table
from m3po_dagster.export.formats import ImageMode, PairFormat
from m3po_dagster.export.made import ShardPairs, recipe_name
from m3po_dagster.export.provenance import counts_table, lineage_table, settings_table
from m3po_dagster.export.records import Tally
from m3po_dagster.study import Study

_IMAGES = {
    "embed": "inside the rows",
    "copy": "copied into `images/`",
    "reference": "referenced by their paths on the machine that exported them",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(
    shards: Sequence[ShardPairs], study: Study, layout: PairFormat, mode: ImageMode, name: str, tally: Tally
) -> str:
    """The README.md of an export: front matter that `datasets.load_dataset` follows, then the card."""
    from huggingface_hub import DatasetCardData

    recipe = recipe_name(shards)
    described = study.recipes[recipe].description if recipe in study.recipes else ""
    turned = f" {tally.turned} were turned upright, as their EXIF orientation says." if tally.turned else ""
    data = DatasetCardData(
        license=study.licences.release,
        task_categories=["image-text-to-text"],
        tags=["preference", "dpo", "m3po", layout.name],
        size_categories=[next((size for below, size in _SIZES if tally.written < below), "1M<n<10M")],
        pretty_name=name,
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": layout.files}]}],
    )
    parts = [
        f"# {name}",
        f"{tally.written:,} preference pairs with images, made by {made_by()} after {PAPER}: a vision-language model's "
        f"own answers, of which a judge prefers one to the other. Study `{study.name}`, recipe `{recipe}`"
        f"{f': {described}' if described else ''}.",
        f"Images are {_IMAGES[mode]}.{turned if mode != 'reference' else ''}",
        "## Loading",
        layout.how_to(name),
        "## What was left out of this export",
        "\n".join(f"* {line}" for line in tally.dropped_lines) or "Nothing: every selected pair is here.",
        "## How the pairs were made",
        settings_table(shards),
        counts_table(shards),
        "## Licences",
        table(
            ("what", "licence"),
            licence_rows(study.licences, list(study.dataset.sources), [one.name for one in study.judge.assessors]),
        ),
        "## Lineage",
        "A fingerprint says what a thing was made from, its content what it holds. `m3po store show FINGERPRINT` shows "
        "it in the store that it came from.",
        lineage_table(shards),
    ]
    return card(data, parts)
