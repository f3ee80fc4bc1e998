"""A real Ray cluster of several nodes for tests. Ray listens on all interfaces; here only loopback is one of them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SECONDS_TO_START = 180


@dataclass
class RayCluster:
    """A head, and nodes with one `slot` each in place of a GPU. `address` is the job server's, as seen from inside."""

    address: str
    raylets: list[int]
    holder: int

    def inside(self, command: Sequence[str]) -> list[str]:
        """A command that sees the cluster's network and this machine's files."""
        return ["nsenter", f"--net=/proc/{self.holder}/ns/net", *command]

    def node_of(self, pid: int) -> int:
        """The number of the node that a process runs on."""
        above = [process.pid for process in psutil.Process(pid).parents()]
        (number,) = [number for number, raylet in enumerate(self.raylets) if raylet in above]
        return number

    def kill_node(self, number: int) -> None:
        """SIGKILL for a node's raylet and for all that runs below it, as when the machine is gone."""
        raylet = psutil.Process(self.raylets[number])
        for process in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def jobs(self) -> list[dict]:
        """The jobs so far, oldest first: the Dagster step, the number of the node it ran on, how it ended."""
        script = str(Path(__file__).with_name("ray_jobs.py"))
        done = subprocess.run(
            self.inside([sys.executable, script, self.address]), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def ended_jobs(self, seconds: float = 120) -> list[dict]:
        """The jobs once none is at work: Ray answers before it stops a job, and kills it after a while."""
        deadline = time.monotonic() + seconds
        while True:
            jobs = self.jobs()
            at_work = [job for job in jobs if job["status"] in ("PENDING", "RUNNING")]
            if not at_work:
                return jobs
            assert time.monotonic() < deadline, f"still at work after {seconds:.0f} s: {at_work}"
            time.sleep(1)


@contextmanager
def ray_cluster(nodes: int, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """A running cluster; `environment` is that of its nodes.

    Skips the test where Ray or namespaces aren't to be had, unless M3PO_REQUIRE_RAY is set.
    """
    _required()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie in it, whose paths must be short
    command = ["unshare", "-n", sys.executable, str(Path(__file__).with_name("ray_node.py")), str(nodes)]
    variables = {
        **environment,
        # Several raylets of one machine count as alive until this notices; else that takes half a minute.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else the address of the newest cluster is written where every cluster of this machine looks for it.
        "RAY_TMPDIR": str(folder),
    }
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        said = _first_line(process)
        if not said:
            pytest.fail(f"no Ray cluster: {(folder / 'cluster.log').read_text()[-4000:]}")
        yield RayCluster(**json.loads(said), holder=process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(process: subprocess.Popen) -> str:
    """The line of JSON; '' when the process ended or took too long. Ray prints what it likes before it."""
    timer = threading.Timer(SECONDS_TO_START, process.kill)
    timer.start()
    try:
        return next((line for raw in process.stdout if (line := raw.decode().strip()).startswith('{"address"')), "")
    finally:
        timer.cancel()


def _required() -> None:
    try:
        import dagster_ray  # noqa: F401
        import ray  # noqa: F401

        missing = "" if _namespaces() else "no network namespaces for this user (unshare -n, nsenter)"
    except ImportError as error:
        missing = f"extra `ray` is not installed ({error})"
    if missing:
        (pytest.fail if os.environ.get("M3PO_REQUIRE_RAY") else pytest.skip)(missing)


def _namespaces() -> bool:
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        return False
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
