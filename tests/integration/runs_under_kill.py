"""Runs a whole study as `m3po run` does it, in processes that are killed at random moments of every stage.

    python runs_under_kill.py PARTS SEED      with M3PO_STUDY, M3PO_STORE and DAGSTER_HOME set

PARTS is a JSON list of [asset, partition, seconds], what an undisturbed run makes in the order it makes it. One kill is
aimed at each: somewhere within half as long as it took then, from when its lock is seen; what there is but one of is
killed at its very start before. After every second follows a kill at any moment. Everything is imported before the
processes are forked, but for some that are started as a shell starts them. Prints each kill with what was being made,
and whether something committed was ever written again.
"""

import fcntl
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

IMPORTED = (
    "m3po_dagster.cli.main",
    "m3po_dagster.definitions",
    "m3po_dagster.runner",
    "open_clip",
    "peft",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
)
SHELL_EVERY = 4
"""One in so many kills at any moment meets a process with its start before it."""
MOST_SECONDS = 2.5
LOOK_SECONDS = 0.001
COMMAND = "from m3po_dagster.cli.main import main; main()"


def taken(lock: Path) -> bool:
    """Whether somebody holds a lock."""
    with suppress(FileNotFoundError), open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Killing:
    """The killed runs of one project."""

    def __init__(self, root: Path, log: Path, seed: int) -> None:
        self.root, self.log, self.rng = root, log, random.Random(seed)
        self.kills: list[dict] = []
        self.anywhere = 0
        self.committed: dict[str, tuple[int, int]] = {}
        self.rewritten: list[str] = []

    def held(self) -> list[str]:
        """What is being made: the folders whose lock somebody holds, as asset[partition]; a kill leaves the file."""
        return sorted(f"{path.parts[-4]}[{path.parts[-3]}]" for path in self.root.glob("[!.]*/*/*/lock") if taken(path))

    def _manifests(self) -> int:
        return sum(1 for _ in self.root.glob("[!.]*/*/*/manifest.json"))

    def once(self, part: tuple[str, str, float] | None) -> bool:
        """One run; killed while `part` is made, or at any moment without one. Whether it ended by itself."""
        self.anywhere += part is None
        shell = part is None and self.anywhere % SHELL_EVERY == 0
        process = self._shell() if shell else self._forked()
        try:
            # Not past the next commit: how far a run comes must not depend on how fast the machine is.
            if part is None:
                before = self._manifests()
                seconds = self.rng.uniform(0, MOST_SECONDS * (4 if shell else 1))
                self._wait(process, seconds, lambda: self._manifests() > before)
            else:
                asset, folder, seconds = part
                place = self.root / asset / folder
                self._wait(
                    process, 600, lambda: any(map(taken, place.glob("*/lock"))) or any(place.glob("*/manifest.json"))
                )
                self._wait(process, self.rng.uniform(0, seconds), lambda: any(place.glob("*/manifest.json")))
            alive = process.poll() is None
            if alive:
                process.send_signal(signal.SIGSTOP)
                kill = {"aimed at": part and f"{part[0]}[{part[1]}]", "shell": shell, "held": self.held()}
                self.kills.append(kill)
        finally:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
        self._look_at_commits()
        if not alive and code:
            raise SystemExit(f"a run ended with {code}:\n" + self.log.read_text()[-4000:])
        return not alive

    def _look_at_commits(self) -> None:
        """A manifest that was there must be the same file still."""
        for path in self.root.glob("[!.]*/*/*/manifest.json"):
            name, status = str(path.relative_to(self.root)), path.stat()
            found = (status.st_ino, status.st_mtime_ns)
            if self.committed.setdefault(name, found) != found:
                self.rewritten.append(name)

    def _wait(self, process: "Forked | subprocess.Popen", seconds: float, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and process.poll() is None and not until():
            time.sleep(LOOK_SECONDS)

    def _shell(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", COMMAND, "run"], stdout=log, stderr=log)

    def _forked(self) -> "Forked":
        child = os.fork()
        if child == 0:
            code = 1
            try:
                log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.dup2(log, 1)
                os.dup2(log, 2)
                sys.argv = ["m3po", "run"]
                importlib.import_module("m3po_dagster.cli.main").main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            finally:
                sys.stdout.flush()
                os._exit(code)
        return Forked(child)


class Forked:
    """A forked child with the methods of a Popen that are needed here."""

    def __init__(self, pid: int) -> None:
        self.pid, self.code = pid, None

    def poll(self) -> int | None:
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


def main(parts: str, seed: str) -> None:
    """Kills until every part was aimed at, then lets a run end."""
    import torch

    from m3po_dagster.torchvision_repair import repair_torchvision

    # A pool of threads would not survive the fork.
    torch.set_num_threads(1)
    repair_torchvision()
    for name in IMPORTED:
        importlib.import_module(name)
    root = Path(os.environ["M3PO_STORE"])
    killing = Killing(root, root.with_name("killed.log"), int(seed))
    wanted = json.loads(parts)
    several = Counter(asset for asset, _, _ in wanted)
    for number, (asset, folder, seconds) in enumerate(wanted):
        # What there is but one of is met at work for sure: before it can end, at its very start.
        if several[asset] == 1:
            killing.once((asset, folder, 0.0))
        killing.once((asset, folder, seconds / 2))
        if number % 2 == 0:
            killing.once(None)
    while not killing.once(("never", "made", 0.0)):
        pass
    found = {"kills": killing.kills, "rewritten": killing.rewritten, "committed": len(killing.committed)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
