"""A Postgres server of a test's own: a new cluster on loopback, gone afterwards."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of an empty database. Skips the test without Postgres, unless M3PO_REQUIRE_POSTGRES is set."""
    programs = _programs()
    if programs is None:
        message = "no Postgres server on this machine (Debian: package postgresql)"
        if os.environ.get("M3PO_REQUIRE_POSTGRES"):
            pytest.fail(message)
        pytest.skip(message)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "cluster"
    data.mkdir()
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        entry = pwd.getpwnam(user)
        os.chown(data, entry.pw_uid, entry.pw_gid)
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)

    def run(program: str, *words: str) -> None:
        command = [str(programs / program), "-D", str(data), *words]
        done = subprocess.run(command, user=user, cwd=data, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "-U", "m3po", "-A", "trust")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={data} -c fsync=off"
    run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://m3po@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")


def _programs() -> Path | None:
    """The folder of the server's programs, of the newest version there is."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[-1] if found else None
