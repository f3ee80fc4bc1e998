"""Where an adapter was trained and what memory that took, as its manifest says it."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from m3po_dagster.assets.adapters import train_seed
from m3po_dagster.device_use import processor, resident_peak
from m3po_dagster.method.optimization.run import TrainingResult
from m3po_dagster.method.optimization.settings import SftSettings
from m3po_dagster.method.optimization.trainer_settings import LocalTrainerSettings
from m3po_dagster.storage.store import ArtifactStore

MEGABYTE = 1_000_000


class Trained:
    """Leaves a result in place of a training."""

    def __init__(self, used):
        self._used = used

    def train(self, study, examples, settings, seed, out, scratch, progress):
        from safetensors.numpy import save_file

        out.mkdir(exist_ok=True)
        save_file({"weight": np.ones(2, np.float32)}, out / "adapter_model.safetensors")
        return TrainingResult([], [], {}, seconds=1.0, n_examples=0, n_trainable=2, used=self._used)


@pytest.fixture
def metadata(tmp_path):
    """metadata(used): of the manifest of an adapter whose training said `used`."""
    store = ArtifactStore(tmp_path / "store")

    @contextmanager
    def progress(*_):
        yield lambda step, steps: None

    def of(used):
        study = SimpleNamespace(
            recipes={"sft": SimpleNamespace(training=SftSettings())},
            trainer=LocalTrainerSettings(),
            same_as=lambda recipe: recipe,
        )
        work = SimpleNamespace(
            study=study, partition="sft", store=store, provenance=dict, log=print, open=store.open, progress=progress
        )
        return train_seed(work, Trained(used), 0, lambda: ([], {})).manifest.metadata

    return of


def test_launched_processes_say_where_it_was(metadata):
    found = metadata({"device": "a GPU", "devices": 1, "peak memory": 7})
    assert (found["device"], found["devices"], found["peak memory"]) == ("a GPU", 1, 7)


def test_here_it_is_the_memory_of_this_training_and_not_of_what_was_before(metadata):
    held = np.ones(300 * MEGABYTE // 8)
    before = resident_peak()
    del held
    found = metadata({})
    assert (found["device"], found["devices"]) == (processor(), 1)
    # Or the same, where the system may not be told to forget.
    assert found["peak memory"] < before - 200 * MEGABYTE or found["peak memory"] == resident_peak() == before
