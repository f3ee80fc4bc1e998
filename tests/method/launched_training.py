"""A training in two processes, to be killed: python launched_training.py JOB_FOLDER OUT SCRATCH."""

import sys
from pathlib import Path

from m3po_dagster.method.optimization.job import read_job
from m3po_dagster.method.optimization.launch import launch
from m3po_dagster.method.optimization.trainer_settings import AccelerateTrainerSettings

if __name__ == "__main__":
    folder, out, scratch = map(Path, sys.argv[1:])
    job, examples = read_job(folder)
    trainer = AccelerateTrainerSettings(
        processes=job.processes, checkpoint_minutes=0, per_device_batch_size=job.pass_size
    )
    launch(
        trainer, job.model, examples, job.training, job.seed, out, scratch, lambda step, steps: print(step, flush=True)
    )
