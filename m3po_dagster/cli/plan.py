"""`m3po plan`: how a study grows with its prompts, on the machines you name."""

import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from m3po_dagster.cli.options import JsonOption, explained, fail

if TYPE_CHECKING:
    from m3po_dagster.cost.scale import Scale
    from m3po_dagster.settings import Settings

SIZES = ["4K", "150K", "10M"]
_UNITS = {"": 1, "K": 1_000, "M": 1_000_000}


def plan(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Numbers of prompts, such as 4K 150K 10M.", show_default=" ".join(SIZES))
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", envvar="M3PO_STUDY", help="Whose growth.", show_default="the paper's setting"),
    ] = None,
    card: Annotated[Literal["a100", "h100", "l40s"], typer.Option(help="GPU of the plan.")] = "a100",
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Your own measured rate of sampling on one card, generated tokens a second."),
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Shards.", show_default="the fewest that fit memory and cards")
    ] = None,
    question_bytes: Annotated[float, typer.Option(min=0, help="Mean bytes of a prompt's text.")] = 60.0,
    answer_bytes: Annotated[float, typer.Option(min=1, help="Mean bytes of an answer.")] = 400.0,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An assumption of your own, a number or LOW..HIGH: cards=64, gpu_hour=2.1; may be repeated.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time on so many cards, memory, storage, requests and money at several sizes; and what each size runs into.

    Arithmetic: nothing is asked, read or spent. Every figure that it rests on is listed below the table and can be set
    with --assume.
    """
    from m3po_dagster.cost import growth, told
    from m3po_dagster.cost.assumptions import CARDS
    from m3po_dagster.cost.estimate import Workload, estimate
    from m3po_dagster.cost.model_facts import model_facts
    from m3po_dagster.cost.plan import PAPER, Plan
    from m3po_dagster.cost.prompt_tokens import with_own_tokens
    from m3po_dagster.cost.scale import limits, scaled
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    sizes = [_number(text) for text in prompts or SIZES]
    with explained(StudyError):
        asked = Plan.of(load_study(study)) if study else PAPER
    assumed, on, measured = _assumed(assume or [])
    shape = with_own_tokens(Workload(1, question_bytes, answer_bytes), asked.model)
    model = model_facts(asked.model, assumed)
    found, costs = [], []
    for size in sizes:
        work = replace(shape, prompts=size)
        costs.append(estimate(asked, work, model, CARDS[card], assumed, tokens_per_second))
        found.append(scaled(asked, work, costs[-1], assumed, on, measured, shards))
    said = told.assumptions(asked, work, model, CARDS[card], assumed, tokens_per_second)
    said = {name: text for name, text in said.items() if name != "prompts"}
    said["answer"] = f"{answer_bytes:g} bytes of text (--answer-bytes), at most max_new_tokens ({asked.max_new_tokens})"
    said["not counted"] += "; what a judge takes longer than sampling"
    said |= {
        name: told.described(settings, name) for settings in (on, measured) for name in type(settings).model_fields
    }
    rows = [
        {**told.facts(cost), **growth.scale_facts(one), "runs into": limits(one, on)}
        for cost, one in zip(costs, found, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps({"of": asked.name, "card": card, "sizes": rows, "assumptions": said}))
        return
    _show(asked.name, found, rows, said)


def _number(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KM]?)", text.upper())
    number = Decimal(match[1]) * _UNITS[match[2]] if match else Decimal(0)
    if number < 1 or number % 1:
        fail(f"{text!r} is no number of prompts: write 4000, 150K or 10M")
    return int(number)


def _assumed(given: list[str]) -> "tuple[Settings, Settings, Settings]":
    """Assumptions, deployment and measured figures, each with those of `given` that it has."""
    from pydantic import ValidationError

    from m3po_dagster.cost.assumptions import Assumptions, Range
    from m3po_dagster.cost.deployment import Deployment, Measured

    kinds, values = (Assumptions, Deployment, Measured), {}
    for text in given:
        name, _, value = text.partition("=")
        field = next((kind.model_fields[name] for kind in kinds if name in kind.model_fields), None)
        if field is None:
            names = ", ".join(sorted(name for kind in kinds for name in kind.model_fields))
            fail(f"--assume {text}: there is no assumption {name!r}; there are {names}")
        low, dots, high = value.partition("..")
        try:
            one = (float(low), float(high if dots else low))
            values[name] = Range(*one) if field.annotation is Range else one[0]
        except ValueError as error:
            fail(f"--assume {text}: {error}; write NAME=NUMBER, or NAME=LOW..HIGH for a range")
        if dots and field.annotation is not Range:
            fail(f"--assume {text}: {name} is one number")
    try:
        return tuple(
            kind(**{name: value for name, value in values.items() if name in kind.model_fields}) for kind in kinds
        )
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"--assume {first['loc'][0]}: {first['msg']}")


def _show(name: str, found: "list[Scale]", rows: list[dict], said: dict[str, str]) -> None:
    """The table, what each size runs into, and what it all rests on."""
    from rich.table import Table

    from m3po_dagster.cli.store import console
    from m3po_dagster.cost import growth

    typer.echo(f"{name}, low to high")
    table = Table(box=None)
    table.add_column("")
    for one in found:
        table.add_column(f"{one.prompts:,} prompts", justify="right")
    for label, cells in growth.table(rows):
        table.add_row(label, *cells)
    console().print(table)
    for one, row in zip(found, rows, strict=True):
        for text in row["runs into"]:
            typer.echo(f"{one.prompts:,} prompts: {text}")
    typer.echo("\nassumed; change one with --assume NAME=VALUE")
    listed = Table(box=None, show_header=False)
    for key, text in said.items():
        listed.add_row(key, text)
    console().print(listed)
