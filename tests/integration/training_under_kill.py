"""Trains a recipe of a project for real, in child processes that are killed at random moments; prints what was done.

    python training_under_kill.py STUDY UNDISTURBED_STORE KILLED_STORE DAGSTER_HOME RECIPE SEED

Everything is imported before the children are forked, so that an attempt costs its training alone.
"""

import importlib
import json
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import dagster as dg
import torch
from killed import attempt

from m3po_dagster.assets.adapters import train_recipe
from m3po_dagster.current import read_heads
from m3po_dagster.graph import inputs_of
from m3po_dagster.identity import Identities
from m3po_dagster.materialise import Work
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import load_study
from m3po_dagster.torchvision_repair import repair_torchvision

MOST_TRIES = 40


class Noted(TrainerResource):
    """The trainer, with a line in `log` for every step that is done."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def train(self, study, examples, settings, seed, out, scratch, progress):
        def noted(step, steps):
            with open(self._log, "a") as file:
                file.write(f"{seed} {step}\n")
            progress(step, steps)

        return super().train(study, examples, settings, seed, out, scratch, noted)


def main(study_file: str, undisturbed: str, killed: str, home: str, recipe: str, seed: str) -> None:
    """An undisturbed run in one store, then killed ones in the other until one ends by itself."""
    # A pool of threads would not survive the fork.
    torch.set_num_threads(1)
    repair_torchvision()
    importlib.import_module("trl.trainer.dpo_trainer")
    study, part = load_study(study_file), ("lora_adapter", recipe)
    with dg.DagsterInstance.from_config(home) as instance:
        heads = read_heads(instance)

    def work(root: str) -> Work:
        store = ArtifactStore(root)
        inputs = {name: store.find(*name, heads[name].fingerprint) for name in inputs_of(*part, study)}
        return Work(part, study, store, Identities(lambda path: ""), heads, inputs, lambda line: None)

    folder = Path(tempfile.mkdtemp())
    logs = {name: folder / name for name in ("undisturbed", "killed")}
    for log in logs.values():
        log.touch()
    started = time.monotonic()
    if attempt(partial(train_recipe, work(undisturbed), Noted(logs["undisturbed"])), None):
        raise SystemExit("the undisturbed run failed")
    whole, rng, codes = time.monotonic() - started, random.Random(int(seed)), []
    while not codes or codes[-1] == -signal.SIGKILL:
        if len(codes) == MOST_TRIES:
            raise SystemExit(f"not finished after {MOST_TRIES} kills")
        # An attempt has more and more time, so that one of them ends by itself however slow the machine is.
        patience = rng.uniform(0.2, 0.6) * whole * (1 + len(codes) / 10)
        codes.append(attempt(partial(train_recipe, work(killed), Noted(logs["killed"])), patience))
    done = {
        name: [tuple(map(int, line.split())) for line in log.read_text().splitlines()] for name, log in logs.items()
    }
    print(json.dumps({"codes": codes, **done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
