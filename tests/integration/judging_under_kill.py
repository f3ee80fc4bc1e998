"""Judges a shard of a project for real, in processes that are killed at random moments; prints how each ended.

    python judging_under_kill.py STUDY STORE DAGSTER_HOME LEDGER FINGERPRINT KILLS SEED

KILLS is `never` or `random`. The ledger is a folder of the store, so that one run does not profit from another's.
"""

import json
import os
import random
import signal
import sys
from functools import partial

import dagster as dg
from killed import attempt

from m3po_dagster.assets.scores import score_outside
from m3po_dagster.current import read_heads
from m3po_dagster.graph import inputs_of
from m3po_dagster.identity import Identities
from m3po_dagster.materialise import Work
from m3po_dagster.method.alignment import ledger as alignment_ledger
from m3po_dagster.resources import judge
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import load_study

PART = ("mas_table", "s0")
MOST_TRIES = 60


def judge_all(work: Work, fingerprint: str) -> None:
    """What the step of mas_table does, as a run of its own."""
    work.run_id = f"run-{os.getpid()}"
    with work.store.open(*PART, fingerprint) as draft:
        if not draft.committed:
            work.draft = draft
            draft.commit(score_outside(work, judge.JudgeResource(device="cpu")).tables, code_version="1")


def main(study_file: str, root: str, home: str, ledger: str, fingerprint: str, kills: str, seed: str) -> None:
    """Attempts until one ends by itself."""
    alignment_ledger.FOLDER = ledger
    study, store = load_study(study_file), ArtifactStore(root)
    with dg.DagsterInstance.from_config(home) as instance:
        heads = read_heads(instance)
    inputs = {part: store.find(*part, heads[part].fingerprint) for part in inputs_of(*PART, study)}
    work = Work(PART, study, store, Identities(lambda path: ""), heads, inputs, lambda line: None)
    rng, codes = random.Random(int(seed)), []
    while not codes or codes[-1] == -signal.SIGKILL:
        if len(codes) == MOST_TRIES:
            raise SystemExit(f"not finished after {MOST_TRIES} kills")
        # An attempt has more and more time, so that one of them ends by itself however slow the machine is.
        patience = None if kills == "never" else rng.uniform(0.1, 0.6) * (1 + len(codes) / 5)
        codes.append(attempt(partial(judge_all, work, fingerprint), patience))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(*sys.argv[1:])
