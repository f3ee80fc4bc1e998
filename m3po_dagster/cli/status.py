"""`m3po status`: how a study stands."""

import json
from collections import Counter
from typing import Annotated

import typer

from m3po_dagster.cli.options import JsonOption, StudyOption
from m3po_dagster.cli.project import how_it_stands_now, prepare
from m3po_dagster.study import DEFAULT_STUDY


def status(
    study: StudyOption = DEFAULT_STUDY,
    everything: Annotated[bool, typer.Option("--all", help="Every partition, fresh ones too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What is fresh, stale, missing or at work, what waits for something that is, what the sensors hold, and why."""
    from m3po_dagster.graph import label

    loaded = prepare(study)
    found, held = how_it_stands_now(loaded)
    if as_json:
        rows = [
            {"part": label(item.part), "state": item.state, "why": item.why, "held": held.get(item.part, "")}
            for item in found
        ]
        typer.echo(json.dumps(rows))
        return
    by_asset: dict[str, Counter[str]] = {}
    for item in found:
        by_asset.setdefault(item.part[0], Counter())[item.state] += 1
    for name, states in by_asset.items():
        typer.echo(f"{name:24} " + ", ".join(f"{number} {state}" for state, number in states.items()))
    for item in found:
        if everything or item.state != "fresh":
            why = "; ".join(text for text in (item.why, held.get(item.part, "")) if text)
            typer.echo(f"  {item.state:8} {label(item.part)}{': ' + why if why else ''}")
