"""Writes a recipe's pairs as one tool loads them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.export.data_files import row_file
from m3po_dagster.export.dataset_card import dataset_card
from m3po_dagster.export.folder import ExportError, new_folder
from m3po_dagster.export.formats import IMAGES, ImageMode, PairFormat
from m3po_dagster.export.llama_factory import LlamaFactoryPairs
from m3po_dagster.export.made import ShardPairs, recipe_name
from m3po_dagster.export.ms_swift import MsSwiftPairs
from m3po_dagster.export.records import PairRecord, Tally, records_of
from m3po_dagster.export.rlaif_v import RlaifVPairs
from m3po_dagster.export.trl import TrlPairs
from m3po_dagster.study import Study

FORMATS: dict[str, PairFormat] = {
    layout.name: layout for layout in (TrlPairs(), LlamaFactoryPairs(), MsSwiftPairs(), RlaifVPairs())
}
"""Every layout by name."""


def image_mode(layout: PairFormat, asked: str | None) -> ImageMode:
    """How the export holds images: `asked`, or the layout's default. Raises ExportError for what it can't."""
    if asked is not None and asked not in layout.image_modes:
        raise ExportError(f"--images {asked}: {layout.name} takes {' or '.join(layout.image_modes)}")
    return asked or layout.image_modes[0]


def export_pairs(
    shards: Sequence[ShardPairs],
    study: Study,
    layout: PairFormat,
    mode: ImageMode,
    out: Path,
    advance: Callable[[int, int], None],
) -> Tally:
    """Writes the pairs to the new folder `out`, a data file a shard, and a card; gives what became of them.

    `advance(done, total)` is called after each pair. Memory holds the texts of one shard and the images of one row
    group. Raises ExportError when `out` holds files, when a source's images have no folder, or when not one pair can be
    written; StoreError for a damaged table; OSError when `out` can't be written. Then there is no folder.
    """
    images, tally = DatasetImages(study.dataset), Tally()
    total, done = sum(shard.pairs.manifest.tables["data"].rows for shard in shards), 0
    name = f"{study.name}_{recipe_name(shards)}"
    rejected = [shard.pairs.table(columns=["rejected_id"])["rejected_id"] for shard in shards]
    if total and all(ids.null_count == len(ids) for ids in rejected):
        raise ExportError(
            f"recipe {recipe_name(shards)!r} selects single answers, no pairs: none of its {total:,} has a rejected "
            "answer; name another recipe"
        )
    with new_folder(out) as folder:
        (folder / layout.folder).mkdir(exist_ok=True)
        for shard in shards:
            path = folder / layout.folder / f"{shard.shard}{layout.suffix}"
            with row_file(path, layout.features()) as file:
                for record in records_of(shard, images, tally):
                    if record is not None and (reason := _why_not(layout, mode, record)):
                        tally.drop(reason, record.row["pair_id"])
                    elif record is not None:
                        file.write(layout.row(record, _image(record, mode, folder)), len(record.image.content))
                        tally.written += 1
                        tally.turned += record.image.turned
                    done += 1
                    advance(done, total)
        if not tally.written:
            raise ExportError(f"no pair of {name} can be written: {'; '.join(tally.dropped_lines) or 'it has none'}")
        layout.beside(folder, name)
        card = dataset_card(shards, study, layout, mode, name, tally)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return tally


def _why_not(layout: PairFormat, mode: ImageMode, record: PairRecord) -> str | None:
    if mode == "reference" and record.image.turned and not layout.undoes_turns:
        return "its image file is turned by EXIF, which the tool doesn't undo: include images instead"
    return layout.why_not(record)


def _image(record: PairRecord, mode: ImageMode, folder: Path) -> dict[str, Any] | str:
    """The image as the row holds it; where images are copied, the copy is written, one a file of the dataset."""
    image = record.image
    if mode == "embed":
        return {"bytes": image.content, "path": f"{image.path.stem}{image.suffix}"}
    if mode == "reference":
        return str(image.path.resolve())
    place = f"{IMAGES}/{image.sha256[:2]}/{image.sha256}{image.suffix}"
    copy = folder / place
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.content)
    return place
