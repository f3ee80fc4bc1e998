"""`m3po store`: what lies in the store, what an artifact was made from, and what may go."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.options import JsonOption, StoreOption, fail
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.store import ArtifactStore

app = typer.Typer(no_args_is_help=True, help="Look at the artifact store, and clear it up.")

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 1000


def opened(folder: str) -> ArtifactStore:
    """The store at `folder`. Raises StoreError when there is none: a reader makes no store."""
    store = ArtifactStore(folder)
    if not store.exists():
        raise StoreError(f"there is no store at {store.location}: run a study first, or give --store or M3PO_STORE")
    return store


def console() -> "Console":
    """A console that wraps lines on a terminal and cuts none in a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


@app.command("ls")
def list_artifacts(
    asset: Annotated[str | None, typer.Argument(help="Only this asset.")] = None,
    as_json: JsonOption = False,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """List committed artifacts, then unfinished ones."""
    try:
        store = opened(folder)
        artifacts, drafts = list(store.list(asset)), list(store.drafts(asset))
    except StoreError as error:
        fail(str(error), status=1)
    if as_json:
        rows = [{"state": "committed", **_summary(artifact)} for artifact in artifacts]
        rows += [{"state": "unfinished", **d.key._asdict(), "parts": d.parts, "bytes": d.bytes} for d in drafts]
        typer.echo(json.dumps(rows, indent=1))
        return

    from rich.filesize import decimal
    from rich.table import Table

    table = Table("asset", "partition", "fingerprint", "holds", "size", "made")
    for column in table.columns:
        column.no_wrap = True
    for artifact in artifacts:
        manifest = artifact.manifest
        made = manifest.created.strftime("%Y-%m-%d %H:%M")
        cells = [manifest.asset, manifest.partition, manifest.fingerprint[:12], _holds(artifact)]
        table.add_row(*cells, decimal(manifest.bytes), made)
    for draft in drafts:
        cells = [draft.key.asset, draft.key.partition, draft.key.fingerprint[:12], f"{draft.parts} parts"]
        table.add_row(*cells, decimal(draft.bytes), "unfinished")
    size = sum(artifact.manifest.bytes for artifact in artifacts) + sum(draft.bytes for draft in drafts)
    console().print(table)
    typer.echo(f"{len(artifacts)} artifacts, {len(drafts)} unfinished, {decimal(size)} in {store.location}")


@app.command()
def show(
    fingerprint: Annotated[str, typer.Argument(help="Fingerprint of an artifact, or how it begins.")],
    as_json: JsonOption = False,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Show one artifact: what it holds, what it was made from, by what."""
    try:
        artifact = opened(folder).resolve(fingerprint)
    except StoreError as error:
        fail(str(error), status=1)
    manifest = artifact.manifest
    if as_json:
        typer.echo(manifest.to_json().decode(), nl=False)
        return
    for name in ("asset", "partition", "fingerprint", "data_version", "code_version", "created", "seconds"):
        typer.echo(f"{name:13}{getattr(manifest, name)}")
    typer.echo(f"{'folder':13}{artifact.location}")
    typer.echo(f"{'python':13}{manifest.python} on {manifest.platform}")
    typer.echo(f"{'libraries':13}{', '.join(f'{name} {version}' for name, version in manifest.libraries.items())}")
    for title, values in (("settings", manifest.settings), ("metadata", manifest.metadata)):
        if values:
            typer.echo(f"{title}\n  " + json.dumps(values, indent=1, ensure_ascii=False).replace("\n", "\n  "))
    for name, ref in sorted(manifest.inputs.items()):
        typer.echo(f"{'input':13}{name}: {ref.fingerprint[:12]}, content {ref.data_version[:12]}")
    for name, table in manifest.tables.items():
        typer.echo(f"{'table':13}{name}: {table.rows:,} rows, {table.bytes:,} bytes, content {table.hash[:12]}")
        for name, column in table.columns.items():
            typer.echo(f"{'':15}{name}: {column.type}")
    for path, file in manifest.files.items():
        typer.echo(f"{'file':13}{path}: {file.bytes:,} bytes, sha256 {file.sha256[:12]}")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Leave what is younger than this many hours.")] = 1.0,
    folder: StoreOption = DEFAULT_STORE,
) -> None:
    """Remove what is neither current in Dagster nor needed by an adapter, and drafts nobody works on."""
    from rich.filesize import decimal

    from m3po_dagster.current import current_heads

    try:
        store = opened(folder)
        heads = current_heads()
        if not heads:
            raise StoreError(
                "Dagster knows no current artifact, so everything without an adapter would go: set DAGSTER_HOME to the "
                "instance of this store (a run of the study finds everything again)"
            )
        removals = store.gc(heads, dry_run=True, older_than=older_than * 3600)
        for removal in removals:
            typer.echo(f"{removal.key}  {decimal(removal.bytes)}  {removal.reason}")
        total = decimal(sum(removal.bytes for removal in removals))
        if not removals:
            typer.echo("Nothing to remove.")
            return
        if dry_run:
            typer.echo(f"{len(removals)} would go, {total}; --no-dry-run removes them")
            return
        if not yes:
            typer.confirm(f"Remove these {len(removals)}, {total}?", abort=True)
        gone = store.gc(heads, dry_run=False, older_than=older_than * 3600)
    except StoreError as error:
        fail(str(error), status=1)
    typer.echo(f"{len(gone)} removed, {decimal(sum(removal.bytes for removal in gone))}")


def _summary(artifact: Artifact) -> dict:
    manifest = artifact.manifest
    return {
        **artifact.key._asdict(),
        "data_version": manifest.data_version,
        "rows": {name: table.rows for name, table in manifest.tables.items()},
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "created": manifest.created.isoformat(timespec="seconds"),
    }


def _holds(artifact: Artifact) -> str:
    manifest = artifact.manifest
    held = [f"{table.rows:,} {'rows' if name == 'data' else name}" for name, table in manifest.tables.items()]
    if manifest.files:
        held.append(f"{len(manifest.files)} files")
    return ", ".join(held)
