"""The account that a command asks served judges for: the graph's own ledger and budget, so that neither pays twice."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from m3po_dagster.cli.event_log import event_log

if TYPE_CHECKING:
    from m3po_dagster.method.alignment.account import Account
    from m3po_dagster.storage.store import ArtifactStore
    from m3po_dagster.study import Study


def command_account(study: "Study", command: str) -> "Account | None":
    """The account of a command; None for a study without a served judge.

    Where the graph has not probed the judge as it is now, it is probed here: replies are kept under what it answers.
    Raises as the probe does.
    """
    from m3po_dagster.home import store_root
    from m3po_dagster.method.alignment.probe import probe
    from m3po_dagster.resources.judge import JudgeResource
    from m3po_dagster.storage.store import ArtifactStore

    if not any(scorer.served for scorer in study.judge.scorers):
        return None
    store = ArtifactStore(store_root())
    rows = probed_rows(study, store)
    if rows is None:
        typer.echo("asking the judge its probe set first: the graph has not done so yet", err=True)
        rows = probe(study.judge)
    # A run of its own each time, for a budget a run; whoever calls the command again wants failures tried again.
    run = f"m3po judge {command} {datetime.now(UTC):%Y-%m-%dT%H:%M:%S}-{secrets.token_hex(3)}"
    account = JudgeResource().account(study, store.location, run, rows, lambda line: typer.echo(line, err=True))
    return replace(account, again=True)


def probed_rows(study: "Study", store: "ArtifactStore") -> list[dict] | None:
    """What the graph's probe found of the judge as the study has it; None where it is not made or not up to date."""
    from m3po_dagster.current import held_heads
    from m3po_dagster.graph import part_fingerprint
    from m3po_dagster.resources.study import StoreResource

    part = ("judge_probe", "")
    with event_log() as instance:
        heads = held_heads(instance, store)
    identities = StoreResource(root=store.location).identities()
    if part not in heads or part_fingerprint(part, study, identities, heads) != heads[part].fingerprint:
        return None
    return store.find(*part, heads[part].fingerprint).table().to_pylist()
