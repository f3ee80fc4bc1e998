"""Starts a training in several processes by `accelerate launch`, follows it, and says in one sentence why it failed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.job import PROGRESS, RESULT, Job, write_job
from m3po_dagster.method.optimization.run import TrainingResult
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.trainer_settings import AccelerateTrainerSettings

WORKER = "m3po_dagster.method.optimization.worker"
OUTPUT = "output.txt"
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 10
_LINES_SHOWN = 5


def launch(
    trainer: AccelerateTrainerSettings,
    model: ModelSettings,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings | SftSettings,
    seed: int,
    out: Path,
    scratch: Path,
    progress: Callable[[int, int], None],
) -> TrainingResult:
    """`train.train` in `trainer.processes` processes of this machine; the first of them writes the adapter.

    They end when this process does, however it ends. Raises ValueError with what the first process to fail said, or
    with the end of their output when none could say anything.
    """
    folder = scratch / "job"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    every = trainer.checkpoint_minutes
    me = psutil.Process()
    job = Job(
        model=model,
        training=settings,
        seed=seed,
        out=out.absolute(),
        checkpoints=None if every is None else (scratch / "checkpoints").absolute(),
        checkpoint_minutes=every or 0,
        pass_size=trainer.division(settings.batch_size)[0],
        processes=trainer.processes,
        owner=me.pid,
        owner_started=me.create_time(),
    )
    write_job(folder, job, examples)
    with open(folder / OUTPUT, "wb") as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, a list of arguments, no shell
            command(trainer, folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            # A group of its own, so that all of it can be ended.
            start_new_session=True,
        )
    try:
        _follow(process, folder / PROGRESS, progress)
    finally:
        _end(process)
    if process.returncode != 0:
        raise ValueError(_why(folder, trainer.processes, process.returncode))
    return TrainingResult(**json.loads((folder / RESULT).read_text(encoding="utf-8")))


def command(trainer: AccelerateTrainerSettings, folder: Path) -> list[str]:
    """The command line that runs the job in `folder`."""
    options = {
        "config_file": trainer.launch_config,
        "num_processes": trainer.processes,
        "num_machines": 1,
        # The processes of one machine find each other by a file, not by a port that the network sees.
        "main_process_port": 0,
        "rdzv_backend": "c10d",
        "rdzv_conf": "store_type=file",
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", *given, "--module", WORKER, str(folder)]


def environment() -> dict[str, str]:
    """This process's environment, the processes' talk on a CPU kept on the machine's own interface."""
    own = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == "127.0.0.1" for address in addresses)
    ]
    interface = {"GLOO_SOCKET_IFNAME": own[0]} if own else {}
    # The launcher would open a port on every interface for what the processes do by a file.
    return {**interface, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **os.environ}


def _follow(process: subprocess.Popen, file: Path, progress: Callable[[int, int], None]) -> None:
    told = 0
    while True:
        running = process.poll() is None
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        for line in lines[told:]:
            step, steps = line.split()
            progress(int(step), int(steps))
        told = len(lines)
        if not running:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(SECONDS_TO_END)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def _why(folder: Path, processes: int, code: int) -> str:
    """What the first process to fail said; the others fail of its absence."""
    said = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("error-*.json")]
    if said:
        first = min(said, key=lambda error: error["time"])
        return f"process {first['process']} of {processes}: {first['message']}"
    lines = [line for line in (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines() if line]
    shown = " | ".join(lines[-_LINES_SHOWN:])
    return (
        f"the training's {processes} processes ended with status {code} and gave no reason; their last words: {shown}"
    )
