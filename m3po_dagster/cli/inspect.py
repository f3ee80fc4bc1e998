"""`m3po inspect`: the pair inspector in the browser."""

import webbrowser
from typing import Annotated

import typer

from m3po_dagster.cli.options import StoreOption, StudyOption, explained
from m3po_dagster.home import DEFAULT_STORE
from m3po_dagster.inspector.links import DEFAULT_PORT
from m3po_dagster.study import DEFAULT_STUDY


def inspect(
    study: StudyOption = DEFAULT_STUDY,
    store: StoreOption = DEFAULT_STORE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = DEFAULT_PORT,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Look at prompts, candidates, pairs and answers, and move alpha and delta, on a page on 127.0.0.1."""
    from m3po_dagster.home import ensure_home
    from m3po_dagster.storage.errors import StoreError
    from m3po_dagster.storage.store import ArtifactStore
    from m3po_dagster.study import load_study
    from m3po_dagster.study_errors import StudyError

    with explained(StudyError):
        load_study(study)
    with explained(OSError, StoreError, status=1):
        ensure_home()
        opened = ArtifactStore(store)

    import dagster as dg

    from m3po_dagster.inspector.server import serve

    def ready(address: str) -> None:
        typer.echo(f"{address}  (stop with Ctrl+C)")
        if open_page:
            webbrowser.open(address)

    with dg.DagsterInstance.get() as instance, explained(OSError, status=1):
        serve(study.absolute(), opened, instance, port, ready)
