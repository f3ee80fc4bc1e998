"""`m3po inspect`: the pair inspector in the browser."""

import webbrowser
from typing import Annotated

import typer

from m3po_dagster.cli.event_log import event_log
from m3po_dagster.cli.options import StudyOption, explained
from m3po_dagster.cli.store import opened
from m3po_dagster.home import DEFAULT_STORE, store_root
from m3po_dagster.inspector.links import DEFAULT_BASE, DEFAULT_PORT
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import DEFAULT_STUDY, load_study
from m3po_dagster.study_errors import StudyError

ABOUT_LINKS = (
    f"links in the Dagster UI keep the inspector's address of when the asset was made: {DEFAULT_BASE}, unless "
    "`m3po ui --inspector-port` or M3PO_INSPECTOR_URL said another then; materialise the asset again to renew its link"
)


def inspect(
    study: StudyOption = DEFAULT_STUDY,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help=f"Folder or URL (file://, s3://) of a store that is there. [default: M3PO_STORE, or {DEFAULT_STORE}]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = DEFAULT_PORT,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Look at prompts, candidates, pairs and answers, and move alpha and delta, on a page on 127.0.0.1."""
    with explained(StudyError):
        load_study(study)
    with explained(StoreError, status=1):
        # Where runs will make a store may be watched before they do; a store that is named must be there.
        shown = ArtifactStore(store_root()) if store is None else opened(store)
    if not shown.exists():
        typer.echo(f"there is no store at {shown.location} yet: the pages fill once a run has made it", err=True)

    from m3po_dagster.inspector.server import serve

    def ready(address: str) -> None:
        typer.echo(f"{address}  (stop with Ctrl+C)")
        if address != DEFAULT_BASE:
            typer.echo(ABOUT_LINKS, err=True)
        if open_page:
            webbrowser.open(address)

    with explained(OSError, status=1), event_log() as instance:
        serve(study.absolute(), shown, instance, port, ready)
