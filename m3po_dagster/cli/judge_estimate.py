"""`m3po judge estimate`: what judging a study's candidates will ask of served judges and cost, before it is asked."""

import json
from typing import TYPE_CHECKING

import typer

from m3po_dagster.cli.event_log import event_log
from m3po_dagster.cli.judge_account import probed_rows
from m3po_dagster.cli.options import JsonOption, StudyOption, explained, fail
from m3po_dagster.cli.project import prepare
from m3po_dagster.cli.store import opened
from m3po_dagster.study import DEFAULT_STUDY

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.estimate import Estimate
    from m3po_dagster.study import Study

COLUMNS = ("requests", "in the ledger", "prompt tokens", "completion tokens", "cost")


def estimate(study: StudyOption = DEFAULT_STUDY, as_json: JsonOption = False) -> None:
    """Say how many requests, tokens and how much money the study's served judges will take, shard by shard.

    Counts the candidates that are made; nothing is asked. What the ledger holds costs nothing and is left out.
    """
    from m3po_dagster.materialise import MENDABLE

    loaded = prepare(study)
    if not any(scorer.served for scorer in loaded.judge.scorers):
        fail(f"study {loaded.name} has no served judge: its scorers are loaded here and cost no request")
    with explained(*MENDABLE, status=1):
        found, missing, probed = _estimates(loaded)
    rows = [{"shard": shard, "scorer": name, **one.facts()} for shard, name, one in found]
    total = {name: round(sum(row.get(name, 0) for row in rows), 4) for name in COLUMNS}
    if as_json:
        typer.echo(json.dumps({"rows": rows, "total": total, "without candidates": missing, "probed": probed}))
        return
    _print(rows, total, missing, loaded, probed)


def _estimates(study: "Study") -> tuple[list[tuple[str, str, "Estimate"]], list[str], bool]:
    """Shard, scorer and estimate; the shards that have no candidates yet; whether the judge was probed as it is now."""
    from m3po_dagster.current import held_heads
    from m3po_dagster.home import store_root
    from m3po_dagster.resources.judge import JudgeResource
    from m3po_dagster.study_answers import answers_of_shard

    store = opened(store_root())
    with event_log() as instance:
        heads = held_heads(instance, store)
    rows = probed_rows(study, store)
    account = JudgeResource().account(study, store.location, "estimate", rows or [], typer.echo)
    # Served scorers alone: no model is loaded to count requests.
    served = [scorer.build().at(account) for scorer in study.judge.assessors if scorer.served]
    made = [shard for shard in study.shards if ("candidates", shard) in heads]
    found = []
    for shard in made:
        items = answers_of_shard(study, store, heads, shard)
        found += [(shard, scorer.name, scorer.estimate(items)) for scorer in served]
    return found, [shard for shard in study.shards if shard not in made], rows is not None


def _print(rows: list[dict], total: dict, missing: list[str], study: "Study", probed: bool) -> None:
    from rich.table import Table

    from m3po_dagster.cli.store import console

    if rows:
        table = Table("shard", "scorer", box=None)
        for name in COLUMNS:
            table.add_column(name, justify="right")
        for row in [*rows, {"shard": "all", "scorer": "", **total}]:
            table.add_row(row["shard"], row["scorer"], *(_shown(row.get(name)) for name in COLUMNS))
        console().print(table)
        sources: dict[str, list[str]] = {}
        for row in rows:
            scorers = sources.setdefault(row["tokens from"], [])
            scorers += [row["scorer"]] if row["scorer"] not in scorers else []
        for source, scorers in sources.items():
            typer.echo(f"tokens of {', '.join(scorers)} from {source}")
        unpriced = [one.name for one in study.judge.assessors if one.served and one.prices is None]
        if unpriced:
            typer.echo(f"without prices, so not in the cost: {', '.join(unpriced)}")
    if missing:
        typer.echo(f"no candidates yet, not counted: {', '.join(missing)}")
    if study.judge.may_ask_fewer:
        typer.echo("a cascade leaves answers out, and a referee is asked about a part of them: this is the most")
    if not probed:
        typer.echo(
            "the judge has not been probed as it is now, so what the ledger holds of it is not known: not counted"
        )
    typer.echo("not counted: repairs, retries, and the requests that probe and check the judge itself")


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
