"""What is measured of a trained model, against plain forwards over single sequences and torch's own divergence."""

from dataclasses import replace

import pytest
from optimization_world import World, plain_logp
from PIL import Image, ImageStat

from m3po_dagster.method.optimization import health
from m3po_dagster.method.optimization.blank import blanked
from m3po_dagster.method.optimization.dpo import fit_dpo
from m3po_dagster.method.optimization.lora import save_adapter
from m3po_dagster.method.optimization.run import TrainingResult
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.sft import fit_sft

N, BATCH = 10, 4
DPO = DpoSettings(batch_size=BATCH, epochs=4, learning_rate=5e-3, warmup_ratio=0, reference_sample=2)
SFT = SftSettings(batch_size=BATCH, learning_rate=5e-3, warmup_ratio=0)


class Trained:
    """A finished run, its model in memory, and the base and the trained model loaded afresh from files."""

    def __init__(self, world: World, folder, fit, settings) -> None:
        self.loaded = world.load()
        trainer, self.result = fit(self.loaded, world.examples, settings, 0)
        self.model = trainer.model
        save_adapter(self.model, world.settings, folder)
        self.base, self.policy = world.load(), world.load(adapter=folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("health"), N)


@pytest.fixture(scope="module")
def dpo(world, tmp_path_factory):
    return Trained(world, tmp_path_factory.mktemp("dpo"), fit_dpo, DPO)


@pytest.fixture(scope="module")
def sft(world, tmp_path_factory):
    return Trained(world, tmp_path_factory.mktemp("sft"), fit_sft, SFT)


@pytest.fixture(scope="module")
def without_images(world, tmp_path_factory):
    """The examples beside plain images, made by hand."""
    folder = tmp_path_factory.mktemp("plain")
    images = [example.prompt.open_image() for example in world.examples]
    means = [ImageStat.Stat(image).mean for image in images]
    colour = tuple(round(sum(channel) / len(images)) for channel in zip(*means, strict=True))
    examples = []
    for number, (example, image) in enumerate(zip(world.examples, images, strict=True)):
        Image.new("RGB", image.size, colour).save(folder / f"{number}.png")
        prompt = replace(example.prompt, image_path=folder / f"{number}.png")
        examples.append(replace(example, prompt=prompt))
    return examples


def next_token_logits(loaded, prompt, answer):
    """The logits (tokens, vocabulary) before each token of the answer, the one sequence alone."""
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(images=[prompt.open_image()], text=[text], add_special_tokens=False, return_tensors="pt")
    sequence = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    with torch.no_grad():
        logits = loaded.model(input_ids=sequence, pixel_values=inputs["pixel_values"]).logits[0]
    return logits[-len(answer) - 1 : -1]


def plain_kl(trained: Trained, examples, names) -> float:
    import torch
    from torch.distributions import Categorical, kl_divergence

    tokens = []
    for example in examples:
        for ids in (getattr(example, name) for name in names):
            ours, theirs = (next_token_logits(one, example.prompt, ids) for one in (trained.policy, trained.base))
            tokens.append(kl_divergence(Categorical(logits=ours.double()), Categorical(logits=theirs.double())))
    return torch.cat(tokens).mean().item()


def moved(trained: Trained, example, ids) -> float:
    return plain_logp(trained.policy, example.prompt, ids) - plain_logp(trained.base, example.prompt, ids)


def test_kl_is_torchs_own():
    import torch
    from torch.distributions import Categorical, kl_divergence

    draws = torch.Generator().manual_seed(0)
    # More tokens than are compared at once; distributions from nearly even to nearly certain.
    ours, theirs = (torch.randn(2 * health.ROWS + 7, 50, generator=draws) * 6 for _ in range(2))
    expected = kl_divergence(Categorical(logits=ours.double()), Categorical(logits=theirs.double()))
    torch.testing.assert_close(health.token_kl(ours, theirs).double(), expected, rtol=1e-4, atol=1e-5)
    assert health.token_kl(ours, ours).abs().max() == 0


def test_kl_to_base_is_that_of_plain_forwards(dpo, sft, world):
    both = plain_kl(dpo, world.examples, ("chosen_ids", "rejected_ids"))
    assert dpo.result.health["kl_to_base"] == pytest.approx(both, rel=1e-3)
    alone = plain_kl(sft, world.examples, ("chosen_ids",))
    assert sft.result.health["kl_to_base"] == pytest.approx(alone, rel=1e-3)
    assert both > 1e-3 and alone > 1e-3


def test_gain_is_the_reward_margin_or_what_r_w_gained_a_token(dpo, sft, world):
    margins = [row["reward_margin"] for row in dpo.result.margins]
    assert dpo.result.health["gain"] == pytest.approx(sum(margins) / N, abs=1e-5)
    gained = [moved(sft, example, example.chosen_ids) / len(example.chosen_ids) for example in world.examples]
    assert sft.result.health["gain"] == pytest.approx(sum(gained) / N, abs=1e-5)


def test_policy_and_reference_both_see_the_blank_image(dpo, sft, without_images):
    margins = [
        DPO.beta * (moved(dpo, example, example.chosen_ids) - moved(dpo, example, example.rejected_ids))
        for example in without_images
    ]
    assert dpo.result.health["gain_blank"] == pytest.approx(sum(margins) / N, abs=1e-5)
    gained = [moved(sft, example, example.chosen_ids) / len(example.chosen_ids) for example in without_images]
    assert sft.result.health["gain_blank"] == pytest.approx(sum(gained) / N, abs=1e-5)
    for run in (dpo.result, sft.result):
        assert abs(run.health["gain"] - run.health["gain_blank"]) > 1e-3, "the blank image changed nothing"


def test_the_loss_of_the_image_is_a_paired_mean_with_its_error(dpo, without_images):
    import numpy as np

    falls = [
        row["reward_margin"]
        - DPO.beta * (moved(dpo, example, example.chosen_ids) - moved(dpo, example, example.rejected_ids))
        for row, example in zip(dpo.result.margins, without_images, strict=True)
    ]
    assert dpo.result.health["image_gain"] == pytest.approx(np.mean(falls), abs=1e-5)
    assert dpo.result.health["image_gain_error"] == pytest.approx(np.std(falls, ddof=1) / np.sqrt(N), abs=1e-5)


def test_a_blank_image_has_the_size_of_its_own_and_one_colour(world, tmp_path):
    twice = [*world.examples, replace(world.examples[0], pair_id="again")]
    blanks = blanked(twice, tmp_path)
    assert [one.prompt.open_image().size for one in blanks] == [one.prompt.open_image().size for one in twice]
    assert len({colour for one in blanks for _, colour in one.prompt.open_image().getcolors()}) == 1
    assert len(list(tmp_path.iterdir())) == N
    assert [replace(one, prompt=other.prompt) for one, other in zip(blanks, twice, strict=True)] == twice
    assert {replace(one.prompt, image_path=None) for one in blanks} == {
        replace(one.prompt, image_path=None) for one in twice
    }


def test_a_new_adapter_is_at_its_base(world):
    trainer, _ = fit_dpo(world.load(), world.examples, DPO.model_copy(update={"epochs": 1, "learning_rate": 1e-12}), 0)
    loaded = world.load()
    found = health.against_base(loaded, trainer.model, world.examples, BATCH, 0, DPO.beta)
    assert found["kl_to_base"] == pytest.approx(0, abs=1e-7)
    assert [found[name] for name in ("gain", "gain_blank", "image_gain")] == pytest.approx([0, 0, 0], abs=1e-5)


def test_forwards_are_counted_and_only_answers_reach_the_lm_head(dpo, world):
    forwards, heads = [], []
    hooks = [
        dpo.loaded.model.get_decoder().register_forward_pre_hook(lambda *_: forwards.append(1)),
        dpo.loaded.model.get_output_embeddings().register_forward_hook(lambda _, __, out: heads.append(out.shape)),
    ]
    found = health.against_base(dpo.loaded, dpo.model, world.examples, BATCH, 0, DPO.beta)
    for hook in hooks:
        hook.remove()
    batches = 3
    assert found["forwards"] == len(forwards) == 2 * 2 * batches
    tokens = sum(len(example.chosen_ids) + len(example.rejected_ids) for example in world.examples)
    assert sum(rows for *_, rows, _ in heads) == 2 * 2 * tokens


def test_logits_held_at_once_are_bounded_and_the_bound_changes_no_figure(dpo, world, monkeypatch):
    vocabulary = dpo.loaded.model.config.get_text_config().vocab_size
    longest = max(len(example.chosen_ids) + len(example.rejected_ids) for example in world.examples)
    monkeypatch.setattr(health, "LOGITS", longest * vocabulary)
    heads = []
    hook = dpo.loaded.model.get_output_embeddings().register_forward_hook(lambda _, __, out: heads.append(out.numel()))
    found = health.against_base(dpo.loaded, dpo.model, world.examples, BATCH, 0, DPO.beta)
    hook.remove()
    assert max(heads) <= longest * vocabulary and found["forwards"] > dpo.result.health["forwards"]
    for name in ("kl_to_base", "gain", "gain_blank", "image_gain_error"):
        assert found[name] == pytest.approx(dpo.result.health[name], abs=1e-5)


def test_a_sample_is_drawn_by_the_seed(dpo, world, monkeypatch):
    monkeypatch.setattr(health, "SAMPLE", 4)

    def measured(seed):
        found = health.against_base(dpo.loaded, dpo.model, world.examples, BATCH, seed, DPO.beta)
        return {name: value for name, value in found.items() if name != "seconds"}

    first = measured(0)
    assert first == measured(0) and first["sampled"] == 4 and first["forwards"] == 4
    assert first["kl_to_base"] != measured(1)["kl_to_base"]


def test_without_an_ablation_only_the_distance_is_measured(dpo, world):
    found = health.against_base(dpo.loaded, dpo.model, world.examples, BATCH, 0, None, blank=False)
    assert found.keys() == {"sampled", "kl_to_base", "gain", "forwards", "seconds"}
    assert found["forwards"] == 2 * 3


def test_the_figures_stay_out_of_the_trainings_own_counts(dpo):
    result: TrainingResult = dpo.result
    steps, check, measuring = 12, 1, 3
    assert result.counts["language_model_forwards"] == steps + check + measuring


def step(loss, pairs):
    return {"loss": loss, "pair_ids": ["x"] * pairs}


def test_the_trend_compares_fifths_weighted_by_their_examples():
    log = [step(9, 4), step(3, 4), *[step(100, 4)] * 6, step(1, 4), step(4, 2)]
    assert health.loss_trend(log) == {"loss_first": 6, "loss_last": 2}
    assert health.loss_trend(log[1:]) == {}, "nine steps have no trend"
    many = [step(2, 1)] * 3 + [step(50, 1)] * 9 + [step(1, 1)] * 3
    assert health.loss_trend(many) == {"loss_first": 2, "loss_last": 1}


def test_drift_is_a_mean_of_answers_of_nats_a_token(dpo, sft, world):
    lengths = [len(example.chosen_ids) for example in world.examples]
    expected = [
        (row["chosen_logp_after"] - row["chosen_logp_before"]) / length
        for row, length in zip(dpo.result.margins, lengths, strict=True)
    ]
    assert dpo.result.health["chosen_drift"] == pytest.approx(sum(expected) / N)
    assert dpo.result.health["rejected_drift"] < 0 < dpo.result.health["chosen_drift"]
    assert "rejected_drift" not in sft.result.health and sft.result.health["chosen_drift"] > 0


def test_agreement_counts_pairs_that_mas_tells_apart_whichever_was_chosen(world):
    gaps = (0.5, -0.5, 0.0, None, 0.2)
    examples = [replace(example, mas_gap=gap) for example, gap in zip(world.examples, gaps, strict=False)]
    rows = [{"pair_id": example.pair_id, "reward_margin": 1.0} for example in examples]
    assert health.mas_agreement(examples, rows) == {"mas_agreement": pytest.approx(2 / 3)}
    assert health.mas_agreement(examples, [row | {"reward_margin": None} for row in rows]) == {}
