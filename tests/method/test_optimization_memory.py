"""The trainer as a deployment runs it holds one model at a time: a seed's is gone before the next seed's is loaded."""

import gc
import logging
import weakref
from types import SimpleNamespace

import pytest
from optimization_world import World

from m3po_dagster.method.generation import model as models
from m3po_dagster.method.optimization import dpo, sft
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.trainer_settings import LocalTrainerSettings
from m3po_dagster.resources.trainer import TrainerResource

SETTINGS = {
    "dpo": DpoSettings(batch_size=2, reference_sample=1, layout="packed", image_features="always"),
    "sft": SftSettings(batch_size=2),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("memory"), 2)


@pytest.fixture
def held(monkeypatch, caplog):
    """Weak references to every model that is loaded; the collector comes by only where it is called."""
    # A record of bitsandbytes' warning keeps an exception, whose frames keep the model.
    caplog.set_level(logging.ERROR)
    found, load = [], models.load_model

    def watched(*arguments):
        loaded = load(*arguments)
        found.append(weakref.ref(loaded.model))
        return loaded

    for module in (models, dpo, sft):
        monkeypatch.setattr(module, "load_model", watched)
    gc.disable()
    yield found
    gc.enable()


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_trained_model_is_gone(world, held, tmp_path, kind):
    study = SimpleNamespace(trainer=LocalTrainerSettings(checkpoint_minutes=None), model=world.settings)
    trainer = TrainerResource()
    told = []
    folders = tmp_path / "out", tmp_path / "scratch"
    trainer.train(study, world.examples, SETTINGS[kind], 0, *folders, lambda *step: told.append(step))
    assert told == [(1, 1)] and [model() for model in held] == [None]


def test_so_is_the_model_that_scored_the_reference(world, held):
    examples, counts = TrainerResource().rescored(world.settings, world.examples, lambda *done: None)
    assert len(examples) == 2 and counts.prefill_forwards == 2 and [model() for model in held] == [None]
