"""What a DPO run does to the model and leaves behind; which examples and numbers it refuses."""

import json
import math
from dataclasses import replace

import pytest
from optimization_world import World, plain_logp

from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.optimization.dpo import fit_dpo, train_dpo
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings
from tests.sampling import sample

N, BATCH, EPOCHS = 10, 4, 2
SETTINGS = DpoSettings(batch_size=BATCH, epochs=EPOCHS, learning_rate=5e-3, warmup_ratio=0, reference_sample=2)
ONE_STEP = SETTINGS.model_copy(update={"epochs": 1, "batch_size": N})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Ten images, always "no" chosen over "yes": learnable."""
    return World(tmp_path_factory.mktemp("dpo"), N, same_words=True)


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """The folder of a trained adapter, the run's result and what `progress` was told."""
    out, told = tmp_path_factory.mktemp("adapter"), []
    result = train_dpo(world.settings, world.examples, SETTINGS, 0, out, lambda step, steps: told.append((step, steps)))
    return out, result, told


def weights(model) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in model.state_dict().items()}


def test_it_learns_the_preference(adapter):
    _, result, _ = adapter
    first, last = result.log[0], result.log[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["loss"] < 0.6 < first["loss"]
    assert last["reward_accuracy"] == 1
    assert all(row["reward_margin"] > 0 for row in result.margins)


def test_every_pair_is_seen_once_an_epoch_and_the_tail_is_kept(adapter, world):
    _, result, told = adapter
    assert [len(row["pair_ids"]) for row in result.log] == [4, 4, 2] * EPOCHS
    assert [row["pairs_seen"] for row in result.log] == [4, 8, 10, 14, 18, 20]
    orders = [[pair for row in result.log[start : start + 3] for pair in row["pair_ids"]] for start in (0, 3)]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == sorted(example.pair_id for example in world.examples)
    assert told == [(step, 6) for step in range(1, 7)]
    assert result.n_examples == N


def test_the_adapter_gives_the_log_probs_after_training(adapter, world):
    out, result, _ = adapter
    loaded = world.load(adapter=out)
    for row, example in zip(result.margins, world.examples, strict=True):
        assert row["chosen_logp_before"] == example.ref_chosen_logp
        assert row["rejected_logp_before"] == example.ref_rejected_logp
        chosen = plain_logp(loaded, example.prompt, example.chosen_ids)
        rejected = plain_logp(loaded, example.prompt, example.rejected_ids)
        assert chosen == pytest.approx(row["chosen_logp_after"], abs=1e-4)
        assert rejected == pytest.approx(row["rejected_logp_after"], abs=1e-4)


def test_the_adapter_folder_names_no_place_and_pickles_nothing(adapter, world):
    out, result, _ = adapter
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    text = (out / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "tiny-model"
    assert str(out.parent) not in text
    assert (config["r"], config["lora_alpha"]) == (SETTINGS.lora.r, SETTINGS.lora.alpha)
    from safetensors.numpy import load_file

    saved = load_file(out / "adapter_model.safetensors")
    assert sum(weight.size for weight in saved.values()) == result.n_trainable


def test_only_the_language_models_adapter_changes(world):
    loaded = world.load()
    before = weights(loaded.model)
    trainer, _ = fit_dpo(loaded, world.examples, SETTINGS, 0)
    after = {
        name.replace(".base_layer", ""): weight for name, weight in weights(trainer.model.base_model.model).items()
    }
    lora = {name for name in after if ".lora_" in name}
    assert {name: weight for name, weight in after.items() if name not in lora} == before
    # 3 layers of 7 linears, two matrices each
    assert len(lora) == 3 * 7 * 2
    assert all(name.startswith("model.language_model.layers.") for name in lora)
    assert all(any(after[name]) for name in lora if ".lora_B" in name), "an adapter that stayed 0 learned nothing"


def test_the_seed_decides_everything(world, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 1, "lora": LoraSettings(dropout=0.2)})

    def run(name, seed, settings=settings):
        train_dpo(world.settings, world.examples, settings, seed, tmp_path / name)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    first, again, other = run("first", 7), run("again", 7), run("other", 8)
    assert first == again
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]
    plain = run("plain", 7, settings.model_copy(update={"lora": LoraSettings()}))
    assert first["adapter_model.safetensors"] != plain["adapter_model.safetensors"], "dropout was ignored"


def test_nll_weight_adds_the_mean_nll_of_the_chosen_tokens(world):
    settings = ONE_STEP.model_copy(update={"nll_weight": 0.5})
    _, result = fit_dpo(world.load(), world.examples, settings, 0)
    tokens = sum(len(example.chosen_ids) for example in world.examples)
    nll = -sum(example.ref_chosen_logp for example in world.examples) / tokens
    assert result.log[0]["loss"] == pytest.approx(math.log(2) + 0.5 * nll, abs=1e-4)


def test_gradient_checkpointing_recomputes_and_changes_nothing(adapter, world):
    _, plain, _ = adapter
    loaded, calls = world.load(), []
    loaded.model.get_decoder().layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    _, result = fit_dpo(loaded, world.examples, SETTINGS.model_copy(update={"gradient_checkpointing": True}), 0)
    assert [row["loss"] for row in result.log] == pytest.approx([row["loss"] for row in plain.log], abs=1e-5)
    steps, check, measuring, health = 6, 1, 3, 2 * 2 * 3
    assert len(calls) == 2 * steps + check + measuring + health


def test_a_stored_log_prob_off_by_more_than_the_tolerance_is_refused(world, tmp_path):
    off = [replace(e, ref_rejected_logp=e.ref_rejected_logp + 0.005) for e in world.examples]
    off[6] = replace(off[6], ref_chosen_logp=off[6].ref_chosen_logp - 0.5)
    settings = ONE_STEP.model_copy(update={"reference_sample": N, "batch_size": BATCH})
    with pytest.raises(ValueError, match=r"pair pair-6, chosen answer.*0\.5000 apart with 0\.01 allowed"):
        train_dpo(world.settings, off, settings, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    off[6] = world.examples[6]
    fit_dpo(world.load(), off, settings, 0)


def test_what_the_sampler_stored_serves_as_reference(world):
    loaded = world.load()
    sampling = SamplingSettings(n=2, max_new_tokens=9)
    prompts = [example.prompt for example in world.examples]
    samples = sample(loaded, prompts, sampling, seeds=range(N))
    examples = [
        PreferenceExample(f"pair-{i}", prompt, one.token_ids, other.token_ids, one.sum_logp, other.sum_logp)
        for i, (prompt, (one, other)) in enumerate(zip(prompts, samples, strict=True))
    ]
    exact = ONE_STEP.model_copy(update={"reference_sample": N, "reference_tolerance": 1e-4})
    _, result = fit_dpo(world.load(), examples, exact, 0)
    assert result.n_examples == N


def test_a_run_that_diverges_stops_at_once(world, tmp_path):
    wild = SETTINGS.model_copy(update={"lora": LoraSettings(alpha=1e30), "learning_rate": 1.0})
    with pytest.raises(FloatingPointError, match=r"step 1: the gradient norm is inf on the pairs (pair-\d(, |; )){4}"):
        train_dpo(world.settings, world.examples, wild, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_names_step_and_pairs(world):
    # Beyond float32's range, and let through.
    absurd = [*world.examples[:9], replace(world.examples[9], ref_rejected_logp=-1e39)]
    blind = SETTINGS.model_copy(update={"reference_tolerance": 1e300})
    steps = []
    with pytest.raises(FloatingPointError, match=r"the loss is inf on the pairs .*lower the learning rate") as caught:
        fit_dpo(world.load(), absurd, blind, 0, lambda step, _: steps.append(step))
    assert str(caught.value).startswith(f"step {len(steps) + 1}: ")
    assert "pair-9" in str(caught.value)


def test_examples_that_cannot_be_trained_on_are_refused(world, tmp_path):
    def refused(examples, match):
        with pytest.raises(ValueError, match=match):
            train_dpo(world.settings, examples, SETTINGS, 0, tmp_path / "out")

    first, second = world.examples[:2]
    refused([], "no examples to train on")
    refused([first, second, first], "pair pair-0 is there twice")
    refused([first, replace(second, rejected_ids=None, ref_rejected_logp=None)], "pair pair-1 has no rejected answer")
    placeholder = world.load().processor.image_token_id
    refused(
        [first, replace(second, rejected_ids=(placeholder, 2))], "pair pair-1: an answer holds the image placeholder"
    )


def test_an_image_that_cannot_be_read_is_named(world, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    examples = [replace(world.examples[0], prompt=replace(world.examples[0].prompt, image_path=broken))]
    with pytest.raises(ValueError, match=r"prompt prompt-0 \(image .*broken\.png\): the image can't be decoded"):
        fit_dpo(world.load(), examples, SETTINGS, 0)


def test_a_run_says_nothing_and_tells_nobody(world, capfd, monkeypatch, recwarn):
    from trl.trainer import base_trainer

    told = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: told.append(args))
    monkeypatch.delenv("CI", raising=False)
    loaded = world.load()
    capfd.readouterr()
    recwarn.clear()
    fit_dpo(loaded, world.examples, ONE_STEP, 0)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert told == []
