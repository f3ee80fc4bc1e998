"""`m3po judge ledger`: what the served judges were asked, by study, run and model, and what it took."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from m3po_dagster.bucket_ledger.ledger import BucketLedger
from m3po_dagster.bucket_ledger.opened import opened_ledger
from m3po_dagster.cli.options import JsonOption, StoreOption, explained, fail
from m3po_dagster.cli.store import console, opened
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.method.alignment.ledger import Ledger
from m3po_dagster.method.alignment.ledger_errors import LedgerError
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3 import is_s3

CompactOption = Annotated[
    bool,
    typer.Option("--compact", help="In a bucket: first merge small objects, and remove what killed processes hold."),
]


def ledger(as_json: JsonOption = False, folder: StoreOption = DEFAULT_STORE, compact: CompactOption = False) -> None:
    """Show how many replies of served judges are kept, what they took, and how to query them.

    Of a ledger in a bucket this brings the local copy up to date, which is what the query reads.
    """
    with explained(StoreError, LedgerError, status=1):
        kept = opened_ledger(folder if is_s3(folder) else opened(folder).root)
        if compact:
            _compact(kept)
        totals, spent, unreadable = kept.totals(), kept.spent(), kept.unreadable()
    rows = [
        {"study": study, "run": run, "model": model, **asdict(found)} for (study, run, model), found in totals.items()
    ]
    if as_json:
        total = {**asdict(spent), "unreadable": unreadable}
        typer.echo(json.dumps({"folder": kept.location, "rows": rows, "total": total, "query": query(kept.folder)}))
        return
    if not rows:
        typer.echo(f"No reply is kept in {kept.location}.")
    else:
        _print_table(rows)
        typer.echo(
            f"{spent.requests:,} replies, {spent.prompt_tokens:,} prompt tokens ({spent.cached_tokens:,} cached), "
            f"{spent.completion_tokens:,} completion tokens, cost {spent.cost:,.4f}"
        )
        typer.echo(f"Query them with DuckDB:\n  {query(kept.folder)}")
    if unreadable:
        typer.echo(f"{unreadable} lines can't be read (torn by a kill, damaged, or just being written)")


def _compact(kept: Ledger) -> None:
    if not isinstance(kept, BucketLedger):
        fail(f"--compact is for a ledger in a bucket: {kept.location} has a file a process and needs none")
    done = kept.compact()
    typer.echo(
        f"{done.objects_before:,} objects merged to {done.objects_after:,}; "
        f"{done.traces_removed:,} traces of ended processes removed",
        err=True,
    )


def query(folder: Path) -> str:
    """A statement for DuckDB that sums the ledger up by scorer and model.

    It names the types: guessed ones fit the first rows alone, and `ignore_errors` would empty what does not fit.
    """
    files = str(folder / "*" / "*.jsonl").replace("'", "''")
    return (
        "SELECT scorer, model, count(*) AS replies, sum(cost) AS cost "  # noqa: S608 - the one name in it is quoted
        f"FROM read_json('{files}', format='newline_delimited', ignore_errors=true, "
        "columns={key: 'VARCHAR', scorer: 'VARCHAR', model: 'VARCHAR', cost: 'DOUBLE'}) "
        "WHERE key IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )


def _print_table(rows: list[dict]) -> None:
    from rich.table import Table

    table = Table("study", "run", "model")
    for name in ("replies", "repairs", "prompt tokens", "cached", "completion tokens", "cost"):
        table.add_column(name, justify="right")
    table.add_column("first (UTC)")
    table.add_column("last (UTC)")
    for row in rows:
        counts = [row[name] for name in ("requests", "repairs", "prompt_tokens", "cached_tokens", "completion_tokens")]
        times = [row[name][:16].replace("T", " ") for name in ("first", "last")]
        table.add_row(
            row["study"], row["run"], row["model"], *(f"{count:,}" for count in counts), f"{row['cost']:,.4f}", *times
        )
    console().print(table)
