"""A Postgres server of a test's own: a new cluster on loopback, gone afterwards."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Server:
    """A running server: the URL of its empty database, and how to restart it."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database. Skips the test without Postgres, unless M3PO_REQUIRE_POSTGRES is set."""
    with postgres_server() as server:
        yield server.url


@contextmanager
def postgres_server() -> Iterator[Server]:
    """The same with the server in hand; `stop` breaks off every connection, as a restart does."""
    folder = programs()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A folder of its own: the server refuses to run as root, and may not look into a test's folders.
    data = Path(tempfile.mkdtemp(prefix="m3po-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)

    def run(program: str, *words: str) -> None:
        command = [str(folder / program), "-D", str(data), *words]
        done = subprocess.run(command, user=user, cwd=data.parent, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "-U", "m3po", "-A", "trust")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={data} -c fsync=off"

    def start() -> None:
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")

    start()
    try:
        url = f"postgresql+psycopg2://m3po@127.0.0.1:{port}/postgres"
        yield Server(url, lambda: run("pg_ctl", "-w", "-m", "fast", "stop"), start)
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(data)


def programs() -> Path:
    """The folder of the server's programs, of the newest version there is. Skips as `postgres` does."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    found = max(installed, key=lambda folder: float(folder.parent.name), default=None)
    if found is None:
        message = "no Postgres server on this machine (Debian: package postgresql)"
        if os.environ.get("M3PO_REQUIRE_POSTGRES"):
            pytest.fail(message)
        pytest.skip(message)
    return found
