"""`m3po judge`: assembles the commands about a study's judge."""

import typer

from m3po_dagster.cli.judge_calibrate import calibrate
from m3po_dagster.cli.judge_estimate import estimate
from m3po_dagster.cli.judge_ledger import ledger
from m3po_dagster.cli.judge_validate import validate

app = typer.Typer(no_args_is_help=True)
app.command("estimate")(estimate)
app.command("ledger")(ledger)
app.command("calibrate")(calibrate)
app.command("validate")(validate)
