"""`m3po doctor store`: is everything in the store what was committed, and does Dagster agree?"""

from pathlib import Path
from typing import Annotated

import typer

from m3po_dagster.cli.doctor_report import report
from m3po_dagster.cli.event_log import event_log
from m3po_dagster.cli.options import JsonOption, StoreOption, explained
from m3po_dagster.cli.store import opened
from m3po_dagster.home import DEFAULT_STORE, dagster_home


def check(
    folder: StoreOption = DEFAULT_STORE,
    quick: Annotated[bool, typer.Option("--quick", help="Manifests and sizes alone: nothing is hashed.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set what is damaged aside, in .quarantine; it is made again when due.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every artifact against its hashes, and Dagster's event log against the store.

    Exits with 1 when something is damaged, or current in Dagster and not in the store.
    """
    from rich.filesize import decimal

    from m3po_dagster.current import read_heads
    from m3po_dagster.doctor.store import check_store
    from m3po_dagster.progress import progress
    from m3po_dagster.storage.errors import StoreError

    heads = {}
    # Without a home there is no event log yet: looking for one would make it.
    if (Path(dagster_home()) / "dagster.yaml").is_file():
        with event_log() as instance:
            heads = read_heads(instance)
    with (
        explained(StoreError, status=1),
        progress(lambda line: typer.echo(line, err=True), "checking", "artifact") as advance,
    ):
        store = opened(folder)
        found = check_store(store, heads, not quick, repair, advance)
    survey = found.survey
    facts = {
        "store": store.location,
        "hashed": not quick,
        "whole": len(survey.whole),
        "bytes": survey.bytes,
        "damaged": len(survey.damaged),
        "unfinished": len(survey.drafts),
        "formats": survey.formats,
        "libraries": survey.libraries,
        "set aside now": {str(key): place for key, place in found.repaired.items()},
        "quarantine": [vars(aside) for aside in found.quarantine],
    }
    if not as_json:
        how = "sizes compared" if quick else "every value of the tables, every byte of the files hashed"
        typer.echo(f"{store.location}: {len(survey.whole)} artifacts whole ({how}), {decimal(survey.bytes)}")
        typer.echo("made with " + ", ".join(_versions(name, found) for name, found in survey.libraries.items()))
        if found.quarantine:
            size = decimal(sum(aside.bytes for aside in found.quarantine))
            typer.echo(
                f"set aside: {len(found.quarantine)}, {size}, in {store.location}/.quarantine: remove that folder once "
                "you have looked"
            )
    report(found.findings, facts, as_json)


def _versions(name: str, found: dict[str, int]) -> str:
    """A library with its version, or all of them where there were several."""
    if len(found) == 1:
        return f"{name} {next(iter(found))}"
    return f"{name} " + " and ".join(f"{version} ({number})" for version, number in found.items())
