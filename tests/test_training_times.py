"""How long trainings took, over a store of adapters whose times are known."""

import pyarrow as pa
import pytest

from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.storage.tables import IDENTITY
from m3po_dagster.training_times import training_times


def test_a_resumed_training_took_all_its_attempts(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("m3po_dagster.storage.draft.time.monotonic", lambda: now)
    store = ArtifactStore(tmp_path)
    # The second went on from a checkpoint: its last attempt took 10 seconds of 500.
    for number, (seconds, whole) in enumerate([(100, 90.0), (10, 500.0), (300, 290.0)]):
        with store.open("adapter", f"m3po|{number}", f"{number:064x}") as draft:
            now += seconds
            draft.commit(
                {"data": (pa.table({"fact": ["of"], "value": ["a training"]}, schema=IDENTITY.schema), IDENTITY)},
                code_version="1",
                settings={"training": {"kind": "dpo"}, "seed": number},
                metadata={"training seconds": whole},
            )
    times = training_times(store, "dpo")
    assert (times.trainings, times.train_seconds) == (3, pytest.approx(300))
    assert training_times(store, "sft") is None
