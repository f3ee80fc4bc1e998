"""`m3po score`: assembles the commands that score anybody's answers."""

import typer

from m3po_dagster.cli.score_mme import mme
from m3po_dagster.cli.score_pope import pope

app = typer.Typer(help="Score anybody's answers to a benchmark, from the official tools' files.", no_args_is_help=True)
app.command("mme")(mme)
app.command("pope")(pope)
