"""One process of a launched training: `python -m m3po_dagster.method.optimization.worker FOLDER` (see job.py)."""

import json
import os
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from m3po_dagster.device_use import PEAK_MEMORY, DeviceUse
from m3po_dagster.method.optimization.checkpoints import Checkpoints
from m3po_dagster.method.optimization.execution import Execution
from m3po_dagster.method.optimization.job import PROGRESS, RESULT, Job, read_job
from m3po_dagster.method.optimization.train import BY_KIND
from m3po_dagster.s3_files.ahead import ahead

EXPECTED = (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError, ImportError)
"""What can go wrong with a model, a GPU or another process: said in the error file. Anything else is a defect, and its
trace is in the output."""
SECONDS_BETWEEN_LOOKS = 1.0


def main(folder: Path) -> None:
    """Takes part in the job in `folder` as the process that RANK names."""
    rank = int(os.environ["RANK"])
    try:
        work(folder, rank)
    except EXPECTED as error:
        told = {"process": rank, "time": time.time(), "message": f"{error}" or type(error).__name__}
        (folder / f"error-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
        raise


def work(folder: Path, rank: int) -> None:
    """Trains; the first process tells the steps and writes the result."""
    from accelerate.utils import gather_object

    job, examples = read_job(folder)
    threading.Thread(target=end_with, args=(job.owner, job.owner_started), daemon=True).start()
    join(folder, job)

    def progress(step: int, steps: int) -> None:
        with open(folder / PROGRESS, "a", encoding="utf-8") as file:
            file.write(f"{step} {steps}\n")

    checkpoints = Checkpoints(job.checkpoints, job.checkpoint_minutes) if job.checkpoints else None
    train = BY_KIND[job.training.kind]
    use = DeviceUse()
    execution = Execution(checkpoints, job.pass_size)
    with ahead(example.prompt.image_path for example in examples):
        result = train(job.model, examples, job.training, job.seed, job.out, progress, execution)
    facts = use.facts()
    facts[PEAK_MEMORY] = max(gather_object([facts[PEAK_MEMORY]]))
    result = replace(result, used=facts)
    if rank == 0:
        unfinished = folder / f"{RESULT}.tmp"
        unfinished.write_text(json.dumps(asdict(result)), encoding="utf-8")
        os.replace(unfinished, folder / RESULT)


def join(folder: Path, job: Job) -> None:
    """Meets the other processes, on this process's own GPU.

    Raises ValueError when there are fewer GPUs than processes, or when the launch configuration started another number.
    """
    import torch
    from accelerate import PartialState

    processes = int(os.environ["WORLD_SIZE"])
    if processes != job.processes:
        raise ValueError(
            f"the launch configuration started {processes} processes, trainer.processes is {job.processes}"
        )
    if job.model.device == "cpu" or not torch.cuda.is_available():
        # By a file: torch's own way would listen on every interface of the machine.
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder / 'meeting'}", rank=int(os.environ["RANK"]), world_size=processes
        )
        PartialState(cpu=True)
        return
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        raise ValueError(f"trainer.processes is {job.processes}, and this machine shows {there} GPU(s)")
    torch.cuda.set_device(local)
    PartialState()


def end_with(owner: int, started: float) -> None:
    """Ends this process when the one that waits for it is gone: nobody would read what it makes."""
    while True:
        try:
            if psutil.Process(owner).create_time() != started:
                break
        except psutil.NoSuchProcess:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
