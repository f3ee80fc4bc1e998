"""What says only how fast a training goes is no part of what its adapter is known by."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from m3po_dagster.assets.adapters import train_seed
from m3po_dagster.equal_recipes import first_equals
from m3po_dagster.identity import recipe_identity
from m3po_dagster.method.optimization.settings import CHANGES_NO_WEIGHT, SftSettings
from m3po_dagster.method.optimization.trainer_settings import LocalTrainerSettings
from m3po_dagster.resources.trainer import TrainerResource
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import Recipe
from tests.method.optimization_world import World

RULES = {"dpo": "m3p", "sft": "best_only", "rlhf": "every_answer"}
ON_ANSWERS = {
    "gradient_checkpointing": True,
    "image_features": "never",
    "image_features_gb": 0.5,
}
HOW_FAST = {
    "dpo": ON_ANSWERS | {"reference_sample": 3},
    "sft": ON_ANSWERS,
    "rlhf": {"gradient_checkpointing": True, "answers_at_once": 64},
}


def recipe(kind: str, **training) -> Recipe:
    return Recipe.model_validate({"selection": {"rule": RULES[kind]}, "training": {"kind": kind, **training}})


def test_every_setting_of_the_list_is_tried_in_every_kind_that_has_it():
    for kind, tried in HOW_FAST.items():
        fields = type(recipe(kind).training).model_fields
        assert tried.keys() == {name for name in CHANGES_NO_WEIGHT if name in fields}


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, {name: value}) for kind, all_ in HOW_FAST.items() for name, value in all_.items()]
)
def test_it_makes_no_other_recipe(kind, change):
    plain, faster, other = recipe(kind), recipe(kind, **change), recipe(kind, **change, learning_rate=1e-4)
    assert recipe_identity(faster) == recipe_identity(plain) != recipe_identity(other)
    assert first_equals({"plain": plain, "faster": faster, "other": other}) == {
        "plain": "plain",
        "faster": "plain",
        "other": "other",
    }
    # It still reaches the processes that train.
    assert (
        change.items() <= type(faster.training).model_validate_json(faster.training.model_dump_json()).__dict__.items()
    )


@pytest.mark.parametrize("kind", RULES)
def test_recipes_at_their_defaults_are_known_by_what_they_were(kind):
    """The list came after the first adapters: those are found again."""
    assert recipe(kind).training.identity() == recipe(kind).training.model_dump(mode="json")


def test_an_adapter_trained_one_way_is_found_the_other_way_and_says_how_it_was_made(tmp_path):
    world, store = World(tmp_path, 2), ArtifactStore(tmp_path / "store")
    training = SftSettings(batch_size=2, learning_rate=1e-3)

    def trained(training):
        @contextmanager
        def progress(what, unit):
            yield lambda done, of: None

        recipes = {"sft": SimpleNamespace(training=training)}
        study = SimpleNamespace(
            model=world.settings, trainer=LocalTrainerSettings(), recipes=recipes, same_as=lambda name: name
        )
        work = SimpleNamespace(
            study=study,
            partition="sft",
            store=store,
            open=store.open,
            provenance=dict,
            log=lambda message: None,
            progress=progress,
        )
        return train_seed(work, TrainerResource(), 0, lambda: (world.examples, {}))

    saving = trained(training.model_copy(update={"gradient_checkpointing": True}))
    assert saving.manifest.settings["training"]["gradient_checkpointing"] is True
    assert trained(training).key == saving.key
    assert trained(training.model_copy(update={"image_features": "never"})).key == saving.key
    assert len(list(store.list("adapter"))) == 1
    assert trained(training.model_copy(update={"learning_rate": 1e-4})).key != saving.key
