"""The --rule option of the `m3po score` commands, and what they print when several rules stand side by side."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import typer

ALL = "all"
Scores = TypeVar("Scores")


YesNoRule = Annotated[
    Literal["official", "lmms-eval", "vlmevalkit", "all"],
    typer.Option("--rule", help=f"Whose reading of an answer counts; {ALL}: each beside the others."),
]


def scored(rule: str, rules: Iterable[str], score: Callable[[str], Scores]) -> dict[str, Scores]:
    """What each rule that was asked for gives, by the rule's name."""
    return {name: score(name) for name in (rules if rule == ALL else [rule])}


def print_json(rule: str, found: Mapping[str, dict]) -> None:
    """One JSON object: the only rule's own, or {"rules": {name: ...}}."""
    typer.echo(json.dumps({"rules": dict(found)} if rule == ALL else found[rule], allow_nan=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str], texts: int = 1) -> None:
    """A table whose first `texts` columns are text and the others figures, and its notes below."""
    from rich.table import Table

    from m3po_dagster.cli.store import console

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console().print(table)
    print_notes(notes)


def print_notes(notes: Iterable[str], err: bool = False) -> None:
    """A line a note; on standard error beside a JSON object."""
    for note in notes:
        typer.echo(f"note: {note}", err=err)
