"""`m3po lineage`: what an adapter came from, where a pair or an image went, what differs between two adapters."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from m3po_dagster.cli.event_log import EventLogError, opened_event_log
from m3po_dagster.cli.options import JsonOption, StoreOption, explained, fail
from m3po_dagster.cli.store import console, opened
from m3po_dagster.home import DEFAULT_STORE, dagster_home
from m3po_dagster.identity import Identities
from m3po_dagster.lineage.diff import diff as compare
from m3po_dagster.lineage.manifests import RECIPE_ADAPTERS, Manifests
from m3po_dagster.lineage.naming import Chosen, Current, choose
from m3po_dagster.lineage.pairs import adapter_pairs
from m3po_dagster.lineage.profile import profile
from m3po_dagster.lineage.render import (
    SHOWN,
    chosen_lines,
    diff_lines,
    found_lines,
    profile_lines,
    tree,
)
from m3po_dagster.lineage.search import Found, find_image, find_pair
from m3po_dagster.lineage.study import held_parts
from m3po_dagster.lineage.tree import each, trace
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.file_facts import FileFacts
from m3po_dagster.storage.fingerprint import file_sha256
from m3po_dagster.study import load_study
from m3po_dagster.study_errors import StudyError

app = typer.Typer(
    no_args_is_help=True, help="What an adapter came from, and where a pair or an image went: from manifests alone."
)


AdapterArgument = Annotated[
    str, typer.Argument(help="A recipe, RECIPE|SEED, or how the adapter's fingerprint begins.", metavar="ADAPTER")
]
WhoseOption = Annotated[
    Path | None,
    typer.Option(
        "--study", help="A recipe's name means the adapter that this study file asks for.", show_default=False
    ),
]


@app.command()
def adapter(
    name: AdapterArgument,
    as_json: JsonOption = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="The preference pairs it was trained on instead.")] = False,
    study: WhoseOption = None,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Sum an adapter up and trace it back to the dataset files, or list the pairs it was trained on."""
    with explained(StoreError, status=1):
        manifests = Manifests(opened(folder))
        chosen = choose(manifests, name, current_adapters(manifests, study))
        if pairs:
            _print_pairs(chosen, *adapter_pairs(manifests, chosen.artifact), as_json)
            return
        root, short = trace(manifests, chosen.artifact), profile(manifests, chosen.artifact)
    if as_json:
        artifacts = [node.to_dict() for node in each(root)]
        _print_json({"adapter": chosen.to_dict(), "summary": short.to_dict(), "artifacts": artifacts})
        return
    _print([*chosen_lines(chosen), *profile_lines(short), ""])
    console().print(tree(root))


@app.command()
def pair(
    pair_id: Annotated[
        str, typer.Argument(help="A pair_id or a prompt_id, or how it begins (6 hex digits or more).", metavar="PAIR")
    ],
    as_json: JsonOption = False,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Show which recipes selected a pair or a prompt's pairs, and which adapters saw them, when and how often."""
    with explained(StoreError, status=1):
        manifests = Manifests(opened(folder))
        found = find_pair(manifests, pair_id)
    _print_found(found, as_json)


@app.command()
def image(
    sha256: Annotated[
        str, typer.Argument(help="An image file, or how its sha256 begins (6 hex digits or more).", metavar="IMAGE")
    ],
    as_json: JsonOption = False,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Show the prompts, pairs and adapters in which an image took part."""
    with explained(StoreError, OSError, status=1):
        manifests = Manifests(opened(folder))
        file = Path(sha256)
        if file.is_dir():
            fail(f"{sha256} is a folder: name an image file, or how its sha256 begins", status=1)
        if not file.exists() and (file.suffix or len(file.parts) > 1):
            fail(f"there is no file {sha256!r}", status=1)
        found = find_image(manifests, file_sha256(file) if file.is_file() else sha256)
    _print_found(found, as_json)


@app.command()
def diff(
    first: AdapterArgument,
    second: AdapterArgument,
    as_json: JsonOption = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="List the pairs that differ.")] = False,
    study: WhoseOption = None,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Show what differs between two adapters: judge, recipe, model, dataset, code, training, and their pairs."""
    with explained(StoreError, status=1):
        manifests = Manifests(opened(folder))
        current = current_adapters(manifests, study)
        one, other = (choose(manifests, name, current) for name in (first, second))
        result = compare(manifests, one.artifact, other.artifact)
    if as_json:
        chosen = {"first_adapter": one.to_dict(), "second_adapter": other.to_dict()}
        _print_json({**chosen, **result.to_dict(pairs)})
        return
    _print([*chosen_lines(one), "", *chosen_lines(other), "", *diff_lines(result, pairs)])


def current_adapters(manifests: Manifests, study: Path | None) -> Current | None:
    """What says which adapters are current: the study file, or Dagster's event log if it is at hand."""
    if study is None:
        return _event_log()
    with explained(StudyError, OSError, ValueError):
        hashes = FileFacts.kept_in(manifests.store.cache_folder)
        held = held_parts(manifests, load_study(study), Identities(hashes.sha256))
    fingerprints = {part: head.fingerprint for part, head in held.parts.items()}
    return Current(fingerprints, ", ".join([f"the study file {study}", *held.assumed]), binding=True)


def _event_log() -> Current | None:
    """None where there is no event log, and where there is one that can't be read, after a line that says so."""
    home = dagster_home()
    if not os.path.exists(home / "dagster.yaml"):
        return None
    from m3po_dagster.current import read_heads, read_studies

    try:
        with opened_event_log() as instance:
            heads = read_heads(instance, [RECIPE_ADAPTERS])
            studies = read_studies(instance, RECIPE_ADAPTERS)
    except EventLogError as error:
        typer.echo(f"warning: nothing is called current: {error}", err=True)
        return None
    fingerprints = {part: head.fingerprint for part, head in heads.items()}
    return Current(fingerprints, f"Dagster's event log in {home}", studies=studies)


def _print_pairs(chosen: Chosen, shards: dict[str, str], table: pa.Table, as_json: bool) -> None:
    if as_json:
        _print_json({"adapter": chosen.to_dict(), "shards": shards, "pairs": table.to_pylist()})
        return
    _print([*chosen_lines(chosen), "", *(f"{shard}  {fingerprint}" for shard, fingerprint in shards.items())])
    columns = ["shard", "pair_id", "prompt_id", "chosen_id", "rejected_id", "m3p_score"]
    typer.echo("\t".join(columns))
    for row in table.slice(0, SHOWN).select(columns).to_pylist():
        typer.echo("\t".join(str(value) for value in row.values()))
    if table.num_rows > SHOWN:
        typer.echo(f"... {table.num_rows - SHOWN} more; --json prints all {table.num_rows}")


def _print_found(found: Found, as_json: bool) -> None:
    if as_json:
        _print_json(found.to_dict())
        return
    log = _event_log()
    _print(found_lines(found, set(log.fingerprints.values()) if log else ()))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1))
