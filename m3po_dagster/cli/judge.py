"""`m3po judge`: assembles the commands about a study's judge."""

import typer

from m3po_dagster.cli.judge_calibrate import calibrate

app = typer.Typer(no_args_is_help=True)
app.command("calibrate")(calibrate)


@app.callback()
def judge() -> None:
    """A study's judge: its maps, and whether it judges as people do."""
