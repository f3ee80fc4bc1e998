"""`m3po judge validate`: how far a study's judge agrees with human ratings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.judge_account import command_account
from m3po_dagster.cli.judge_requests import YesOption, agree, requests_of
from m3po_dagster.cli.options import JsonOption, StudyOption, explained
from m3po_dagster.cli.project import prepare
from m3po_dagster.study import DEFAULT_STUDY

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.account import Account
    from m3po_dagster.method.alignment.agreement import Agreement
    from m3po_dagster.method.alignment.ratings import RatedAnswer
    from m3po_dagster.method.alignment.validation import Validation
    from m3po_dagster.study import Study


def validate(
    ratings: Annotated[
        Path, typer.Argument(help="CSV file: image, question, answer, rating (higher is better); optional rater.")
    ],
    study: StudyOption = DEFAULT_STUDY,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that the images' paths start from; else the CSV file's own.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw MAS against the ratings (png, svg or pdf).")] = None,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Resamples of the images.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score rated answers with the study's judge, and say how far MAS and each of its columns agree with the ratings.

    Exit code 0 whatever the agreement; 2 for a file or an option that can't be used, 1 for a judge that can't judge.
    """
    from m3po_dagster.materialise import MENDABLE
    from m3po_dagster.method.alignment.agreement_plot import plot_agreement
    from m3po_dagster.method.alignment.ratings import by_prompt, read_ratings
    from m3po_dagster.method.alignment.validation import validate as compare

    loaded = prepare(study)
    with explained(ValueError, OSError):
        rated = read_ratings(ratings, image_root)
        if plot is not None:
            # Drawn without a point: what can't be drawn is said before the judge is paid.
            plot_agreement([], [], "", plot)
    asked = [len(places) for places in by_prompt(rated).values()]
    agree(requests_of(loaded.judge.assessors, asked), loaded.judge.assessors, yes)
    with explained(*MENDABLE, status=1):
        rows, columns = _judged(loaded, rated, command_account(loaded, "validate"))
        found = compare(rated, rows, columns, resamples, seed)
        if plot is not None:
            title = f"{loaded.name}: {found.mas.answers} answers, {found.mas.images} images"
            plot_agreement([row["mas"] for row in rows], [one.rating for one in rated], title, plot)
    if as_json:
        typer.echo(json.dumps(_as_json(found, loaded)))
    else:
        _print(found, len(rated), len(asked))
        if plot is not None:
            typer.echo(f"wrote {plot}")


def _judged(study: "Study", rated: "list[RatedAnswer]", account: "Account | None") -> tuple[list[dict], list[str]]:
    """The judge's row of each answer, and the columns beside MAS. Raises as the judge does."""
    from m3po_dagster.home import store_root
    from m3po_dagster.method.alignment.validation import score_rated
    from m3po_dagster.progress import progress
    from m3po_dagster.resources.judge import loaded_judge
    from m3po_dagster.resources.study import StoreResource

    # Refuses what the graph would refuse, such as a calibration fitted for another model.
    StoreResource(root=store_root()).identities().judge(study)
    # Every rating counts: a cascade would leave answers out.
    scorer = loaded_judge(study.judge, "auto").exhaustive()
    if account is not None:
        scorer = scorer.at(account)
    with progress(lambda line: None, "judging", "prompt") as advance:
        return score_rated(scorer, rated, advance), [*scorer.scorers, *scorer.sub_scores]


def _as_json(found: "Validation", study: "Study") -> dict:
    from m3po_dagster.method.alignment.validation import verdict

    return {
        "study": study.name,
        "columns": {name: asdict(one) for name, one in found.columns.items()},
        "unscored": dict(found.unscored),
        "raters": None if found.raters is None else asdict(found.raters),
        "verdict": verdict(found),
    }


def _print(found: "Validation", answers: int, prompts: int) -> None:
    from rich.table import Table

    from m3po_dagster.cli.store import console
    from m3po_dagster.method.alignment.validation import shown, verdict

    typer.echo(f"{answers} rated answers to {prompts} prompts; 95 % intervals over images in brackets\n")
    table = Table("column", "n", "unscored", "Pearson", "Spearman", "Kendall tau-b", "pairs ordered alike", box=None)
    for name, one in found.columns.items():
        table.add_row(name, str(one.answers), str(one.unscored), *_cells(one))
    console().print(table)
    for reason, number in found.unscored.items():
        typer.echo(f"  {number} without MAS: {reason}")
    if found.raters is not None:
        typer.echo(
            f"\nraters: {found.raters.ratings} ratings of the {found.raters.answers} answers that several rated; "
            f"Krippendorff's alpha {shown(found.raters.alpha)}"
        )
    typer.echo("\n" + "\n".join(verdict(found)))


def _cells(one: "Agreement") -> list[str]:
    from m3po_dagster.method.alignment.validation import shown

    return [shown(statistic) for statistic in (one.pearson, one.spearman, one.kendall, one.pairs.accuracy)]
