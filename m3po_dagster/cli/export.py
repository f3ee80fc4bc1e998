"""`m3po export`: a recipe's pairs as other trainers load them, its adapter with a model card, or a merged model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.options import StoreOption, StudyOption, explained, fail
from m3po_dagster.cli.store import opened
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.identity import Identities
from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.progress import progress
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.file_facts import FileFacts
from m3po_dagster.study import DEFAULT_STUDY, load_study
from m3po_dagster.study_errors import StudyError

if TYPE_CHECKING:
    from m3po_dagster.export.formats import ImageMode
    from m3po_dagster.export.made import Made

LAYOUTS = "trl, llama-factory, ms-swift or rlaif-v"


def export(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe of the study (of pairs also RECIPE|SHARD), or how a fingerprint of pairs or of an adapter "
            "begins.",
            metavar="NAME",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder, or an empty one.", show_default=False)],
    layout: Annotated[
        str | None, typer.Option("--format", help=f"Write the pairs as {LAYOUTS} loads them.", show_default=False)
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the adapter in PEFT's layout, with a card.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write the base model with the adapter merged in.")] = False,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="How pairs hold images: embed (in the rows; trl, rlaif-v), copy (files beside; llama-factory, "
            "ms-swift) or reference (paths of where they lie; all but rlaif-v). The first that fits is the default.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Which training seed's adapter; the recipe's first without it.", show_default=False
        ),
    ] = None,
    study: StudyOption = DEFAULT_STUDY,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Write pairs for another trainer (--format), an adapter with its card (--adapter), or a merged model (--merge).

    A recipe's name means what the study file asks for now.
    """
    if layout is None and not (adapter or merge):
        fail(f"say what to write: --format {LAYOUTS} for pairs, --adapter, or --merge")
    if layout is not None and (adapter or merge):
        fail("--format writes pairs, --adapter and --merge a model: give one of them")
    if layout is None and images is not None:
        fail("--images goes with --format: an adapter has no images")
    if layout is not None and seed is not None:
        fail("--seed goes with --adapter or --merge: pairs don't depend on a training seed")

    from m3po_dagster.export.folder import ExportError
    from m3po_dagster.export.made import Made
    from m3po_dagster.export.pairs import FORMATS, image_mode

    if layout is not None:
        if layout not in FORMATS:
            fail(f"--format {layout}: there are {LAYOUTS}")
        with explained(ExportError):
            images = image_mode(FORMATS[layout], images)
    with explained(StudyError):
        loaded = load_study(study)
    with explained(ExportError, StoreError, OSError, ValueError, status=1):
        manifests = Manifests(opened(folder))
        made = Made(manifests, loaded, Identities(FileFacts.kept_in(manifests.store.cache_folder).sha256))
        for line in made.assumed:
            typer.echo(f"taken: {line}", err=True)
        if layout is not None:
            _write_pairs(made, name, layout, images, out)
        else:
            _write_model(made, name, seed, merge, out)


def _write_pairs(made: "Made", name: str, layout: str, mode: "ImageMode", out: Path) -> None:
    from m3po_dagster.export.pairs import FORMATS, export_pairs

    shards = made.pairs(name)
    with progress(lambda line: typer.echo(line, err=True), "exporting", "pair") as advance:
        tally = export_pairs(shards, made.study, FORMATS[layout], mode, out, advance)
    for line in tally.dropped_lines:
        typer.echo(line, err=True)
    shown = f"{tally.written:,} pairs of {len(shards)} shards" if len(shards) > 1 else f"{tally.written:,} pairs"
    turned = f", {tally.turned} images turned upright" if tally.turned and mode != "reference" else ""
    typer.echo(f"{shown} for {layout} in {out}: images {mode}{turned}, {tally.dropped.total()} dropped")


def _write_model(made: "Made", name: str, seed: int | None, merge: bool, out: Path) -> None:
    from m3po_dagster.export.model import export_adapter, export_merged

    chosen = made.adapter(name, seed)
    write, what = (export_merged, "merged model") if merge else (export_adapter, "adapter")
    write(made, chosen, out)
    typer.echo(f"{what} of {chosen.artifact.key}, seed {chosen.seed}, in {out}; README.md is its card")
