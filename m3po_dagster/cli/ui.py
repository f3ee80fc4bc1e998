"""`m3po ui`: Dagster's web interface with its daemon, and the inspector beside it, on 127.0.0.1."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from m3po_dagster.cli.options import StudyOption, fail
from m3po_dagster.cli.project import prepare
from m3po_dagster.inspector.links import BASE_VARIABLE, DEFAULT_PORT
from m3po_dagster.study import DEFAULT_STUDY, Study, load_study
from m3po_dagster.study_errors import StudyError

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_END = 15.0


def ui(
    study: StudyOption = DEFAULT_STUDY,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000,
    inspector_port: Annotated[
        int,
        typer.Option(
            min=1, max=65535, help="Port of the inspector. An asset's page links to the port of when it was made."
        ),
    ] = DEFAULT_PORT,
) -> None:
    """Open Dagster's web interface (and its daemon) on 127.0.0.1, and the inspector that its pages link to."""
    loaded = prepare(study)
    workspace = Path("workspace.yaml")
    if not workspace.is_file():
        fail(f"{workspace.absolute()} does not exist: start `m3po ui` in the project's folder", status=1)
    os.environ.setdefault(BASE_VARIABLE, f"http://127.0.0.1:{inspector_port}")
    # Listing 150,000 images on a slow disk, or hashing a model that was replaced, takes a tick longer than a minute.
    os.environ.setdefault("DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS", "900")
    for what in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(what, _stop)
    here = Path(sys.executable)
    dagster = [str(here.with_name("dagster")), "dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)]
    inspect = [str(here.with_name("m3po")), "inspect", "--port", str(inspector_port), "--no-open"]
    # Groups of their own: Ctrl-C reaches this process alone, which ends them in order.
    children = [subprocess.Popen(command, start_new_session=True) for command in (dagster, inspect)]  # noqa: S603 - ours
    try:
        raise typer.Exit(_watch(*children, study, loaded, port))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        _end(children)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _watch(dagster: subprocess.Popen, inspector: subprocess.Popen, path: Path, loaded: Study, port: int) -> int:
    """Waits for the web interface to end; an edited study reloads its definitions.

    Steps read the study themselves. Partitions, code versions and the sensors' settings are fixed in the definitions.
    """
    known, inspected = loaded, True
    while dagster.poll() is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if inspected and inspector.poll() is not None:
            inspected = False
            typer.echo(
                "the inspector has ended, see above; `m3po inspect` with the same --study starts it again", err=True
            )
        try:
            now = load_study(path)
        except StudyError:
            continue
        if now != known and _reload(port):
            typer.echo(f"{path} was edited, definitions reloaded", err=True)
            known = now
    return dagster.returncode


def _reload(port: int) -> bool:
    """Asks the web server to load the definitions anew; False while it doesn't answer."""
    import json
    import urllib.request

    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": "mutation { reloadWorkspace { __typename } }"}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - http, as written above
            return "errors" not in json.load(answer)
    except OSError:
        return False


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        _signal(child, signal.SIGINT)
    deadline = time.monotonic() + SECONDS_TO_END
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen, what: signal.Signals) -> None:
    if child.poll() is None:
        os.killpg(child.pid, what)
