"""Samples a shard of a project for real, in child processes that are killed at random moments; prints what was begun.

    python sampling_under_kill.py STUDY STORE DAGSTER_HOME SEED

The model is loaded once, before the children are forked, so that an attempt costs its sampling alone.
"""

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

from m3po_dagster.assets.candidates import sample_shard
from m3po_dagster.current import read_heads
from m3po_dagster.graph import inputs_of
from m3po_dagster.identity import Identities
from m3po_dagster.materialise import Work
from m3po_dagster.method.generation import sampler
from m3po_dagster.resources.generator import GeneratorResource
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import load_study

PART = ("candidates", "s0")
UNDISTURBED, KILLED = "0" * 64, "1" * 64
MOST_TRIES = 60


def sample_all(work: Work, fingerprint: str, log: Path) -> None:
    """What the candidates' step does, with a line in `log` for every prompt that is begun."""
    prefill = sampler.prefill

    def noted(loaded, prompts, counts):
        with open(log, "a") as file:
            file.write("".join(f"{prompt.prompt_id}\n" for prompt in prompts))
        return prefill(loaded, prompts, counts)

    sampler.prefill = noted
    with work.store.open(*PART, fingerprint) as draft:
        if not draft.committed:
            work.draft = draft
            draft.commit(sample_shard(work, GeneratorResource()).tables, code_version="1")


def main(study_file: str, root: str, home: str, seed: str) -> None:
    """An undisturbed run, then killed ones until one ends by itself."""
    # A pool of threads would not survive the fork.
    torch.set_num_threads(1)
    study, store = load_study(study_file), ArtifactStore(root)
    with dg.DagsterInstance.from_config(home) as instance:
        heads = read_heads(instance)
    inputs = {part: store.find(*part, heads[part].fingerprint) for part in inputs_of(*PART, study) if part in heads}
    work = Work(PART, study, store, Identities(lambda path: ""), heads, inputs, lambda line: None)
    GeneratorResource().load(study.model)
    if study.generation.scorer is not None:
        GeneratorResource().rounds(study, [])
    folder = Path(tempfile.mkdtemp())
    (folder / "undisturbed").touch()
    (folder / "killed").touch()
    started = time.monotonic()
    if attempt(partial(sample_all, work, UNDISTURBED, folder / "undisturbed"), None):
        raise SystemExit("the undisturbed run failed")
    whole, rng, codes = time.monotonic() - started, random.Random(int(seed)), []
    while not codes or codes[-1] == -signal.SIGKILL:
        if len(codes) == MOST_TRIES:
            raise SystemExit(f"not finished after {MOST_TRIES} kills")
        # An attempt has more and more time, so that one of them ends by itself however slow the machine is.
        patience = rng.uniform(0, whole) * (0.5 + len(codes) / 10)
        codes.append(attempt(partial(sample_all, work, KILLED, folder / "killed"), patience))
    begun = {name: (folder / name).read_text().split() for name in ("undisturbed", "killed")}
    print(json.dumps({"codes": codes, **begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])
