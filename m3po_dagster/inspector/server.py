"""Serves the inspector on 127.0.0.1 until it is stopped."""

import socket
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import uvicorn

from m3po_dagster.inspector.app import HOST, build_app
from m3po_dagster.inspector.watch import Watch
from m3po_dagster.storage.store import ArtifactStore


def serve(
    study_path: Path, store: ArtifactStore, instance: dg.DagsterInstance, port: int, ready: Callable[[str], None]
) -> None:
    """Runs the server; `ready` is called with its address once it listens. Port 0 takes a free one.

    Raises OSError when the port can't be used.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"port {port} of {HOST} can't be used ({error.strerror}): choose another with --port"
            ) from None
        port = listener.getsockname()[1]
        watch = Watch(study_path, store, instance)
        app = build_app(watch, port)
        watch.catalogue()
        settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        listener.listen(128)
        ready(f"http://{HOST}:{port}")
        uvicorn.Server(settings).run(sockets=[listener])
    finally:
        listener.close()
