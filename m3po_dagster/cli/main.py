"""`m3po`: assembles the command line."""

import typer

from m3po_dagster.cli import (
    data,
    deployment,
    doctor,
    judge,
    lineage,
    pairs,
    recipes,
    run,
    score,
    status,
    store,
    study,
    ui,
    world,
)
from m3po_dagster.cli.export import export
from m3po_dagster.cli.inspect import inspect
from m3po_dagster.cli.leaderboard import leaderboard
from m3po_dagster.cli.plan import plan
from m3po_dagster.cli.select import select

app = typer.Typer(
    help="M3PO: align a vision-language model on its own outputs, as a Dagster asset graph.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("status")(status.status)
app.command("leaderboard")(leaderboard)
app.command("ui")(ui.ui)
app.command("inspect")(inspect)
app.command("select")(select)
app.command("plan")(plan)
app.command("export")(export)
app.command("sweep")(recipes.sweep)
app.add_typer(data.app, name="data", help="A dataset before a study spends anything on it.")
app.add_typer(study.app, name="study", help="Check, explain and describe study files.")
app.add_typer(recipes.app, name="recipes", help="The recipes of a study: list them, add one, take one out.")
app.add_typer(store.app, name="store", help="Look into the artifact store, and tidy it.")
app.add_typer(
    lineage.app,
    name="lineage",
    help="What an adapter was made from, what a pair or image went into, how two adapters differ.",
)
app.add_typer(pairs.app, name="pairs", help="What became of a recipe's preference pairs in training.")
app.add_typer(doctor.app, name="doctor", help="Checks: a store, an installation, whether two engines agree.")
app.add_typer(deployment.app, name="deployment", help="Where steps run, and what each kind of step is given there.")
app.add_typer(judge.app, name="judge", help="A study's judge: its maps, and whether it judges as people do.")
app.add_typer(score.app, name="score", help="Score anybody's answers to a benchmark, by every public tool's rules.")
app.add_typer(world.app, name="world", help="The embedded world: its files and its weights.")


def main() -> None:
    """Entry point of the `m3po` command."""
    app()
