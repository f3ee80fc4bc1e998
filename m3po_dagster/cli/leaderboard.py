"""`m3po leaderboard`: what came of a study, printed or written into a folder."""

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.options import StudyOption, fail, writing_to
from m3po_dagster.cli.project import current_leaderboard, how_it_stands, prepare
from m3po_dagster.study import DEFAULT_STUDY

if TYPE_CHECKING:
    from m3po_dagster.storage.artifact import Artifact


class Format(StrEnum):
    """What a leaderboard is written as."""

    MD = "md"
    HTML = "html"
    PARQUET = "parquet"


def leaderboard(
    study: StudyOption = DEFAULT_STUDY,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write into this folder instead of printing.", show_default=False),
    ] = None,
    kind: Annotated[
        Format | None,
        typer.Option("--format", help="Only this; printed: md unless given. --out writes all three."),
    ] = None,
) -> None:
    """Print the study's leaderboard, or write it: report (md), page with plots (html), tables (parquet)."""
    if out is None and kind is Format.PARQUET:
        fail("Parquet can't be printed: name a folder with --out")
    board = current_leaderboard(how_it_stands(prepare(study)))
    if board is None:
        fail(f"the leaderboard of {study} is not up to date: run `m3po run --study {study}`", status=1)
    files = _files(board)
    if out is None:
        (path,) = files[kind or Format.MD].values()
        typer.echo(path.read_text(encoding="utf-8"))
        return
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        for some in [files[kind]] if kind else files.values():
            for name, path in some.items():
                typer.echo(shutil.copyfile(path, out / name))


def _files(board: "Artifact") -> dict[Format, dict[str, Path]]:
    """By format, the files of the store under the names they are written as."""
    from m3po_dagster.assets.leaderboard import FILES, PAGE, REPORT

    return {
        Format.MD: {REPORT: board.path(f"{FILES}/{REPORT}")},
        Format.HTML: {PAGE: board.path(f"{FILES}/{PAGE}")},
        Format.PARQUET: {
            "leaderboard.parquet": board.path("data.parquet"),
            "costs.parquet": board.path("costs.parquet"),
        },
    }
