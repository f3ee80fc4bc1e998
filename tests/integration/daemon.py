"""Dagster's real daemon over a test's project: started, killed, waited for; and what its event log says happened."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus

from m3po_dagster.automation.active_runs import ACTIVE
from m3po_dagster.home import SETTINGS

M3PO = str(Path(sys.executable).with_name("m3po"))
QUIET_SECONDS = 13
"""Two to three ticks of a sensor: what has not been started by then is not going to be."""


@dataclass
class Daemon:
    """`with Daemon(project):` runs the daemon with its code server; `kill` ends all of it at once, without a word."""

    project: object
    settings: str = SETTINGS
    process: subprocess.Popen | None = field(default=None, init=False)

    def __enter__(self) -> "Daemon":
        home = self.project.folder / "home"
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").write_text(self.settings)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts the daemon in a process group of its own."""
        environment = {**self.project.environment(), "OMP_NUM_THREADS": "1"}
        command = [Path(sys.executable).with_name("dagster-daemon"), "run", "-m", "m3po_dagster.definitions"]
        with (self.project.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, everything: bool = True) -> list[int]:
        """SIGKILL for the daemon, and for its code server and the runs as well unless `everything` is False.

        Gives the process ids of what the daemon had started.
        """
        if self.process is None:
            return []
        started = descendants(self.process.pid)
        for pid in started if everything else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self.process = None
        return started

    def runs(self, *statuses: DagsterRunStatus) -> list[DagsterRun]:
        """The project's runs, newest first."""
        with self.project.instance() as instance:
            return list(instance.get_runs(dg.RunsFilter(statuses=list(statuses)) if statuses else None))

    def active(self) -> list[tuple[str, str]]:
        """(asset, partition) of the runs waiting or at work."""
        return [what(run) for run in self.runs(*ACTIVE)]

    def until(self, holds, seconds: float = 240) -> None:
        """Waits until `holds()` is true."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s\n{self.report()}"
            time.sleep(0.25)

    def quiet(self) -> None:
        """Waits two to three ticks."""
        time.sleep(QUIET_SECONDS)

    def until_settled(self, seconds: float = 480) -> None:
        """Waits until all is fresh and nothing is at work, and has been so for two to three ticks."""
        deadline, quiet_since, number = time.monotonic() + seconds, None, -1
        while quiet_since is None or time.monotonic() - quiet_since < QUIET_SECONDS:
            assert time.monotonic() < deadline, f"not settled within {seconds} s\n{self.report()}"
            count = len(self.runs())
            settled = not self.active() and not self.project.unsettled()
            quiet_since = (quiet_since or time.monotonic()) if settled and count == number else None
            number = count
            time.sleep(1)

    def report(self) -> str:
        """What a failed wait prints: what is not fresh, the last runs, the end of the daemon's log."""
        lines = [f"{item.part} {item.state}: {item.why}" for item in self.project.unsettled()]
        lines += [f"{what(run)} {run.status.value} {run.tags.get('m3po/wanted', '')}" for run in self.runs()[:15]]
        log = self.project.folder / "daemon.log"
        return "\n".join(lines) + "\n" + (log.read_text()[-4000:] if log.exists() else "")


def what(run: DagsterRun) -> tuple[str, str]:
    """The asset and partition of a run that makes one part; the job and its partition otherwise."""
    names = sorted(key.to_user_string() for key in run.asset_selection or ())
    return (" ".join(names) or run.job_name, run.tags.get("dagster/partition", ""))


def descendants(pid: int) -> list[int]:
    """Process ids of everything a process started, and what those started."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def counts_since(project, before: Counter) -> Counter:
    """Materialisations of each asset since `before = Counter(project.events())`, reused ones too."""
    now = Counter()
    for (asset, partition), number in project.events().items():
        now[asset] += number - before.get((asset, partition), 0)
    return +now


def objects(project, asset: str) -> dict[str, int]:
    """Number of committed artifacts of an asset by partition: how often something was really made."""
    return Counter(artifact.key.partition for artifact in project.store.list(asset))
