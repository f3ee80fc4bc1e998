"""Checks of adapters: bounds on given figures, and which of them real trainings trip that went wrong."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from m3po_dagster.assets import training_checks as training_checks_module
from m3po_dagster.assets.checks import RULES
from m3po_dagster.assets.training_checks import (
    LARGEST_KL,
    LOWEST_DRIFT,
    health_picture,
    health_table,
    training_checks,
)
from m3po_dagster.method.optimization.blank import blanked
from m3po_dagster.method.optimization.dpo import fit_dpo
from m3po_dagster.method.optimization.health import against_base
from m3po_dagster.method.optimization.reference import rescored
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.sft import fit_sft
from tests.method.optimization_world import World

HEALTHY = {
    "loss_first": 0.69,
    "loss_last": 0.6,
    "chosen_drift": 0.02,
    "rejected_drift": -0.05,
    "mas_agreement": 0.9,
    "sampled": 64,
    "kl_to_base": 0.01,
    "gain": 0.1,
    "gain_blank": 0.02,
    "image_gain": 0.08,
    "image_gain_error": 0.02,
}


def facts(accuracy=0.9, finite=True, **figures):
    health = {name: value for name, value in (HEALTHY | figures).items() if value is not None}
    return {"finite": finite, "reward accuracy": accuracy, "health": health}


def checks(*seeds):
    return {check.name: check for check in training_checks(dict(enumerate(seeds)))}


def failed(*seeds):
    return {name for name, check in checks(*seeds).items() if not check.passed}


def test_every_declared_check_is_evaluated_whatever_is_known():
    names = [rule.name for rule in RULES["lora_adapter"]]
    nothing = {"finite": True, "reward accuracy": None, "health": {}}
    for seeds in ((), (nothing,), (facts(),), (facts(), facts())):
        assert [check.name for check in training_checks(dict(enumerate(seeds)))] == names
        assert failed(*seeds) == set()
    assert "nothing was trained" in checks()["kl_to_base"].description
    assert "not measured for this kind of training" in checks(nothing)["image_ablation"].description
    assert "fewer than 10 steps" in checks(nothing)["loss_falls"].description


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"finite": False}, "weights_finite"),
        ({"loss_last": 0.69}, "loss_falls"),
        ({"accuracy": 0.5}, "learned"),
        ({"mas_agreement": 0.5}, "agrees_with_mas"),
        ({"chosen_drift": LOWEST_DRIFT - 1e-6}, "chosen_drift"),
        ({"kl_to_base": LARGEST_KL + 1e-6}, "kl_to_base"),
        ({"image_gain": 0.03, "gain_blank": 0.07}, "image_ablation"),
        ({"image_gain": 0.0, "image_gain_error": 0.0}, "image_ablation"),
    ],
)
def test_one_seed_beyond_a_bound_fails_its_check_alone(wrong, name):
    assert failed(facts(), facts(**wrong)) == {name}
    found = checks(facts(), facts(**wrong))[name]
    assert found.blocking is (name == "weights_finite")
    assert "seed 1" in found.description


def test_figures_on_a_bound_pass():
    assert failed(facts(chosen_drift=LOWEST_DRIFT, kl_to_base=LARGEST_KL, accuracy=0.51)) == set()


def test_figures_are_given_by_seed():
    found = checks(facts(kl_to_base=0.03), facts(kl_to_base=0.01), facts(kl_to_base=None))
    assert found["kl_to_base"].figures == {"worst": 0.03, "seed 0": 0.03, "seed 1": 0.01}
    assert found["loss_falls"].figures["seed 2"] == pytest.approx(0.09)
    assert found["image_ablation"].figures["seed 1 kept"] == pytest.approx(0.2)
    assert checks(facts(gain_blank=-0.5))["image_ablation"].figures["seed 0 kept"] == 0


def test_a_small_sample_says_nothing_of_the_image():
    found = checks(facts(sampled=9, image_gain=-1.0))["image_ablation"]
    assert found.passed and "fewer than 10 examples" in found.description
    assert failed(facts(sampled=10, image_gain=-1.0)) == {"image_ablation"}


def test_the_table_has_a_row_a_seed_and_no_column_of_what_is_unknown():
    table = health_table({3: facts(rejected_drift=None), 4: facts(rejected_drift=None)})
    assert [record.data["seed"] for record in table.records] == [3, 4]
    names = [column.name for column in table.schema.columns]
    assert "kl_to_base" in names and "rejected_drift" not in names


N = 12
SETTINGS = DpoSettings(batch_size=4, epochs=6, learning_rate=1e-2, warmup_ratio=0)


class Scenes:
    """A model, and twelve images of noise about which one question is asked: "yes" is preferred for the bright half.

    `examples` as the image has it; `blind`: always "no", beside the same images.
    """

    def __init__(self, folder):
        world = World(folder, N, same_words=True)
        self.load, question, no_over_yes = world.load, world.examples[0].prompt.messages, []
        for i, example in enumerate(world.examples):
            noise = np.random.default_rng(i).integers(0, 20, (64, 64, 3), dtype=np.uint8)
            path = folder / f"{i}.png"
            Image.fromarray(noise + np.uint8(25 if i % 2 else 230)).save(path)
            prompt = replace(example.prompt, messages=question, image_path=path)
            no_over_yes.append(replace(example, prompt=prompt, mas_gap=0.5))
        self.blind, _ = rescored(self.load(), no_over_yes)
        self.examples = [one if i % 2 else _swapped(one) for i, one in enumerate(self.blind)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return Scenes(tmp_path_factory.mktemp("checks"))


def _swapped(example):
    return replace(
        example,
        chosen_ids=example.rejected_ids,
        rejected_ids=example.chosen_ids,
        ref_chosen_logp=example.ref_rejected_logp,
        ref_rejected_logp=example.ref_chosen_logp,
    )


def of(result):
    """What the manifest of an adapter would hold of it."""
    gained = [row["reward_margin"] > 0 for row in result.margins if row["reward_margin"] is not None]
    return {"finite": True, "reward accuracy": sum(gained) / len(gained) if gained else None, "health": result.health}


def test_a_model_that_learned_from_the_images_passes(scenes):
    _, result = fit_dpo(scenes.load(), scenes.examples, SETTINGS, 0)
    assert failed(of(result)) == set()
    # Beside one and the same image the two halves of the pairs ask for the opposite.
    assert result.health["gain_blank"] == pytest.approx(0, abs=1e-4)
    assert result.health["gain"] > 0.1


def test_pairs_the_wrong_way_round_are_learned_and_disagree_with_mas(scenes):
    flipped = [replace(_swapped(example), mas_gap=-0.5) for example in scenes.examples]
    _, result = fit_dpo(scenes.load(), flipped, SETTINGS, 0)
    assert failed(of(result)) == {"agrees_with_mas"}


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_text_only_learner_fails_the_ablation(scenes, tmp_path, kind):
    """What was trained beside blank images, looked at beside those, as its own figures do, and beside true ones."""
    loaded = scenes.load()
    unseen, _ = rescored(loaded, blanked(scenes.blind, tmp_path))
    if kind == "dpo":
        beta, (trainer, result) = SETTINGS.beta, fit_dpo(loaded, unseen, SETTINGS, 0)
    else:
        settings = SftSettings(batch_size=4, epochs=6, learning_rate=1e-2, warmup_ratio=0)
        beta, (trainer, result) = None, fit_sft(loaded, unseen, settings, 0)
    assert result.health["gain"] > 0.1, "it learned nothing at all"
    assert failed(of(result)) == {"image_ablation"}
    seeing = against_base(loaded, trainer.model, scenes.blind, SETTINGS.batch_size, 0, beta)
    assert "image_ablation" in failed({**of(result), "health": seeing})


def test_the_health_picture_names_a_blank_where_there_is_one(monkeypatch):
    titles = []
    monkeypatch.setattr(training_checks_module, "intervals", lambda panels, zero: titles.append([*panels]))
    health_picture({0: facts()})
    health_picture({0: facts(gain_blank=None)})
    assert [names[2] for names in titles] == ["gain beside the image and a blank", "gain beside the image"]
