"""`m3po recipes` and `m3po sweep`: the recipes of a study file, one more of them, or a grid of alpha and delta."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from m3po_dagster.cli.options import JsonOption, StoreOption, StudyOption, explained, fail
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.settings import check_name
from m3po_dagster.study import DEFAULT_STUDY
from m3po_dagster.study_errors import StudyError

if TYPE_CHECKING:
    from m3po_dagster.derived_recipes import Point
    from m3po_dagster.study import Study
    from m3po_dagster.study_edit import Edit

app = typer.Typer(no_args_is_help=True)

LikeOption = Annotated[str, typer.Option("--like", help="The recipe to start from.", show_default=True)]
SeedsOption = Annotated[
    str | None,
    typer.Option("--seeds", help="Training seeds, 0,1,2; those of the recipe to start from if not given."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")]


@app.command("list")
def list_recipes(study: StudyOption = DEFAULT_STUDY, as_json: JsonOption = False) -> None:
    """List a study's recipes: rule, alpha, delta, training, seeds, and which comes to the same as an earlier one."""
    from m3po_dagster.cli.recipe_rows import recipe_rows, recipe_table, trainings_line

    loaded = _loaded(study)
    rows = recipe_rows(loaded)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from m3po_dagster.cli.store import console

    console().print(recipe_table(rows))
    typer.echo(trainings_line(loaded))


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the new recipe.")],
    like: LikeOption = "m3po",
    alpha: Annotated[float | None, typer.Option("--alpha", help="Weight of the confidence penalty.")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="Margin of the penalty, in nats.")] = None,
    changes: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting, training.beta=0.2 (repeatable)."),
    ] = [],  # noqa: B006
    seeds: SeedsOption = None,
    description: Annotated[str | None, typer.Option("--description", help="One line for the leaderboard.")] = None,
    dry_run: DryRunOption = False,
    study: StudyOption = DEFAULT_STUDY,
    folder: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Add a recipe to a study file: another one with some settings changed. The rest of the file stays as it is."""
    from m3po_dagster.derived_recipes import derived
    from m3po_dagster.study_edit import add_recipes

    loaded = _loaded(study)
    given = {"selection.alpha": alpha, "selection.delta": delta}
    with explained(StudyError, ValueError, OSError):
        check_name(name)
        settings = {key: value for key, value in given.items() if value is not None} | dict(map(_setting, changes))
        made = derived(like, _known(loaded, like, study), settings, _seeds(seeds), description)
        edit = add_recipes(study, {name: made.settings}, dry_run=dry_run)
    _tell(
        edit,
        loaded,
        folder,
        [f"{key} of {like} is not taken over: {why}" for key, why in made.left_out.items()],
        dry_run,
        as_json,
    )


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")],
    dry_run: DryRunOption = False,
    study: StudyOption = DEFAULT_STUDY,
) -> None:
    """Take a recipe out of a study file. What was made of it stays in the store, where its name still finds it."""
    from m3po_dagster.study_edit import remove_recipe

    with explained(StudyError, OSError):
        edit = remove_recipe(study, name, dry_run=dry_run)
    if dry_run:
        typer.echo(edit.difference(), nl=False)
        return
    typer.echo(f"{study}: {name} removed; its adapters and answers stay in the store")


def sweep(
    alpha: Annotated[str | None, typer.Option("--alpha", help="Values of alpha, 0,.1,.25,.5,.75,1.")] = None,
    delta: Annotated[str | None, typer.Option("--delta", help="Values of delta, 0,.1,.2,.3.")] = None,
    like: LikeOption = "m3po",
    seeds: SeedsOption = None,
    prefix: Annotated[str, typer.Option("--prefix", help="How the names begin; the recipe to start from.")] = "",
    dry_run: DryRunOption = False,
    study: StudyOption = DEFAULT_STUDY,
    folder: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Add a grid of recipes over alpha and delta (section 4.6) to a study file, and say what it costs to train.

    With --alpha alone it is the paper's Table 5, with --delta alone Table 6, with both every combination. A point that
    comes to the same training as a recipe that is there is not added. What a point would select is in selection_sweep
    already, which trains nothing.
    """
    from m3po_dagster.derived_recipes import grid
    from m3po_dagster.study_edit import add_recipes

    if alpha is None and delta is None:
        fail("name the values of --alpha, of --delta, or of both")
    loaded = _loaded(study)
    with explained(StudyError, ValueError, OSError):
        if prefix:
            check_name(prefix)
        _known(loaded, like, study)
        points = grid(loaded, like, _numbers("--alpha", alpha), _numbers("--delta", delta), _seeds(seeds), prefix)
        new = {point.name: point.settings for point in points if not point.same_as}
        edit = add_recipes(study, new, dry_run=dry_run) if new else None
        notes = _fewer_seeds(loaded, points, set(_seeds(seeds) or loaded.recipes[like].seeds))
    _tell(edit, loaded, folder, notes, dry_run, as_json, points)


def _fewer_seeds(study: "Study", points: "Sequence[Point]", wanted: set[int]) -> list[str]:
    """The recipes that stand for a point and lack seeds which the other points have."""
    there = {point.same_as: study.recipes[point.same_as].seeds for point in points if point.same_as in study.recipes}
    lacking = {name: sorted(wanted - set(seeds)) for name, seeds in there.items() if wanted - set(seeds)}
    return [f"{name} lacks seeds {', '.join(map(str, seeds))}: add them to compare" for name, seeds in lacking.items()]


def _tell(
    edit: "Edit | None",
    before: "Study",
    folder: str,
    notes: Sequence[str],
    dry_run: bool,
    as_json: bool,
    points: "Sequence[Point]" = (),
) -> None:
    """What was added, which points were there before, and what training will take."""
    from m3po_dagster.cli.recipe_rows import cost

    after = edit.study if edit else before
    added = [name for name in after.recipes if name not in before.recipes]
    aliases = {name: first for name, first in after.aliases().items() if name in added}
    there = {point.name: point.same_as for point in points if point.same_as}
    costs = cost(before, after, folder)
    if as_json:
        facts = {"added": added, "same": there | aliases, "notes": list(notes), "written": bool(added) and not dry_run}
        typer.echo(json.dumps(facts | {"cost": [one.to_dict() for one in costs]}))
        return
    if dry_run and edit:
        typer.echo(edit.difference())
    for name in [point.name for point in points] or added:
        same = there.get(name) or aliases.get(name)
        done = "not added" if name in there else "would be added" if dry_run else "added"
        seeds = f" (seeds {', '.join(map(str, after.recipes[same].seeds))})" if same else ""
        typer.echo(f"  {name:24} {done}{f' = {same}{seeds}' if same else ''}")
    for line in [*notes, *(one.words() for one in costs)]:
        typer.echo(line)
    if not costs:
        typer.echo("nothing to train that the study does not train already")


def _loaded(path: Path) -> "Study":
    from m3po_dagster.study import load_study

    with explained(StudyError):
        return load_study(path)


def _known(study: "Study", name: str, path: Path):
    """The recipe of a name. Raises ValueError."""
    if name not in study.recipes:
        raise ValueError(
            f"{path} has no recipe {name!r} to start from: name one with --like: {', '.join(study.recipes)}"
        )
    return study.recipes[name]


def _setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, the value as YAML reads it. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: write KEY=VALUE, such as training.beta=0.2")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"--set {key}: {value!r} is no value as YAML has it") from None
    if isinstance(read, str):
        try:
            return key, float(read)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    return key, read


def _numbers(option: str, text: str | None) -> list[float] | None:
    """Values between commas. Raises ValueError."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r}: write numbers with commas between them, such as 0,.25,.5") from None
    return values


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds {text!r}: write whole numbers with commas between them, such as 0,1,2")
    return [int(part) for part in parts]
