"""`m3po lineage`: which pairs trained an adapter, and everything those came from."""

import json
from typing import Annotated

import pyarrow as pa
import typer

from m3po_dagster import lineage
from m3po_dagster.cli.options import JsonOption, StoreOption, fail
from m3po_dagster.cli.store import console, opened
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.store import ArtifactStore

app = typer.Typer(no_args_is_help=True, help="What an adapter came from.")
_SHOWN = 20


@app.callback()
def _group() -> None:
    """Keeps `adapter` a command of its own while it is the only one."""


@app.command()
def adapter(
    name: Annotated[
        str, typer.Argument(help="A recipe (its current adapter), or how the adapter's fingerprint begins.")
    ],
    as_json: JsonOption = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="The preference pairs it was trained on instead.")] = False,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Trace an adapter back to the dataset files, or list the pairs it was trained on."""
    try:
        store = opened(folder)
        name = _current(store, name) or name
        if pairs:
            _print_pairs(*lineage.adapter_pairs(store, name), as_json)
            return
        tree = lineage.adapter_lineage(store, name)
    except StoreError as error:
        fail(str(error), status=1)
    if as_json:
        typer.echo(json.dumps(tree.to_dict(), indent=1))
    else:
        console().print(lineage.render(tree))


def _current(store: ArtifactStore, recipe: str) -> str | None:
    """Fingerprint of the recipe's current adapters, if Dagster's event log is at hand and speaks of this store."""
    from m3po_dagster.home import dagster_home

    if not (dagster_home() / "dagster.yaml").exists():
        return None
    from m3po_dagster.current import current_heads

    heads = {(asset, partition): fingerprint for asset, partition, fingerprint in current_heads()}
    fingerprint = heads.get(("lora_adapter", recipe))
    return fingerprint if fingerprint and store.find("lora_adapter", recipe, fingerprint) else None


def _print_pairs(shards: dict[str, str], table: pa.Table, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"shards": shards, "pairs": table.to_pylist()}, indent=1))
        return
    for shard, fingerprint in shards.items():
        typer.echo(f"{shard}  {fingerprint}")
    columns = ["shard", "pair_id", "prompt_id", "chosen_id", "rejected_id", "m3p_score"]
    typer.echo("\t".join(columns))
    for row in table.slice(0, _SHOWN).select(columns).to_pylist():
        typer.echo("\t".join(str(value) for value in row.values()))
    if table.num_rows > _SHOWN:
        typer.echo(f"... {table.num_rows - _SHOWN} more; --json prints all {table.num_rows}")
