"""What a launched training is told and what it answers, as files in a folder: JSON, nothing pickled.

job.json         model, training, seed, where to write, who asked
examples.jsonl   an example a line
progress.txt     a line a step: the step and the number of steps
error-0.json     what ended process 0, and when
result.json      the result, once the adapter is written
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.s3_files.path import as_path
from m3po_dagster.settings import Settings

JOB, EXAMPLES, PROGRESS, RESULT = "job.json", "examples.jsonl", "progress.txt", "result.json"


class Job(Settings):
    """One training, as every process that takes part in it reads it."""

    model: ModelSettings = Field(description="the base model")
    training: DpoSettings | SftSettings = Field(discriminator="kind", description="the recipe's training")
    seed: int = Field(description="the training seed")
    out: Path = Field(description="folder the adapter is written to")
    checkpoints: Path | None = Field(description="folder of the checkpoints; null for none")
    checkpoint_minutes: float = Field(description="minutes between checkpoints")
    pass_size: int = Field(description="examples a process takes at once")
    processes: int = Field(description="processes that take part")
    owner: int = Field(description="process id of who waits for the training; it ends when that one does")
    owner_started: float = Field(description="when that process started, seconds since 1970")


def write_job(folder: Path, job: Job, examples: Sequence[PreferenceExample]) -> None:
    """Writes what the processes read."""
    with open(folder / EXAMPLES, "w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(asdict(example), default=str) + "\n")
    (folder / JOB).write_text(job.model_dump_json(), encoding="utf-8")


def read_job(folder: Path) -> tuple[Job, list[PreferenceExample]]:
    """The job in a folder, and its examples."""
    job = Job.model_validate_json((folder / JOB).read_text(encoding="utf-8"))
    with open(folder / EXAMPLES, encoding="utf-8") as file:
        return job, [_example(json.loads(line)) for line in file]


def _example(row: dict[str, Any]) -> PreferenceExample:
    prompt = row["prompt"]
    turns = tuple(Message(**message) for message in prompt["messages"])
    rejected = row["rejected_ids"]
    return PreferenceExample(
        **{
            **row,
            "prompt": Prompt(**{**prompt, "image_path": as_path(prompt["image_path"]), "messages": turns}),
            "chosen_ids": tuple(row["chosen_ids"]),
            "rejected_ids": None if rejected is None else tuple(rejected),
        }
    )
