"""What a command will ask of served judges, said before it asks; many requests need a --yes."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from m3po_dagster.cli.options import fail
from m3po_dagster.method.alignment.scorer import ScorerSettings, group_size

WITHOUT_YES = 200
"""Requests that are sent without being agreed to."""

YesOption = Annotated[bool, typer.Option("--yes", help=f"Agree to more than {WITHOUT_YES} requests to served judges.")]


def requests_of(scorers: Sequence[ScorerSettings], answers: Sequence[int]) -> dict[str, int]:
    """Requests by served scorer, repairs and retries apart; `answers` holds the distinct answers of each prompt."""
    return {
        scorer.name: sum(-(-number // group_size(scorer)) for number in answers) for scorer in scorers if scorer.served
    }


def agree(requests: Mapping[str, int], scorers: Sequence[ScorerSettings], yes: bool) -> None:
    """Says on standard error what will be asked of whom; ends the command where that needs a --yes."""
    endpoints = {scorer.name: scorer.endpoint for scorer in scorers}
    for name, number in requests.items():
        typer.echo(f"{name}: {number:,} requests to {endpoints[name]}, repairs and retries apart", err=True)
    total = sum(requests.values())
    if total > WITHOUT_YES and not yes:
        fail(f"{total:,} requests to served judges may cost money: give --yes to send them, or take a smaller sample")
