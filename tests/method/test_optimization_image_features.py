"""Images encoded once: the run is the run on pixels, and the tower gets fewer images, by a number that is known."""

import random
from dataclasses import replace

import pytest
from optimization_world import World

from m3po_dagster.method.optimization.dpo import fit_dpo
from m3po_dagster.method.optimization.image_features import ImageFeatures
from m3po_dagster.method.optimization.settings import DpoSettings, SftSettings
from m3po_dagster.method.optimization.sft import fit_sft

N, BATCH, EPOCHS = 6, 3, 2
SETTINGS = DpoSettings(batch_size=BATCH, epochs=EPOCHS, learning_rate=1e-3, warmup_ratio=0, reference_sample=2)
NEVER = SETTINGS.model_copy(update={"image_features": "never"})
CHECKED = BATCH  # the images that are given as pixels once more, to be compared


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("features"), N)


@pytest.fixture(scope="module")
def on_pixels(world):
    return fit_dpo(world.load(), world.examples, NEVER, 0)[1]


def assert_same_run(result, expected):
    names = ("loss", "grad_norm", "reward_margin", "chosen_logp")
    for row, other in zip(result.log, expected.log, strict=True):
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-6, rel=1e-5)
    for row, other in zip(result.margins, expected.margins, strict=True):
        assert row["chosen_logp_after"] == pytest.approx(other["chosen_logp_after"], abs=1e-5)


@pytest.mark.parametrize("layout", ["trl", "packed"])
def test_the_run_is_the_run_on_pixels(world, on_pixels, layout):
    result = fit_dpo(world.load(), world.examples, SETTINGS.model_copy(update={"layout": layout}), 0)[1]
    assert_same_run(result, on_pixels)
    assert result.counts["images_encoded"] == N + CHECKED
    # The check of the reference, the steps, the margins: a row an answer, and an image a row.
    assert on_pixels.counts["images_encoded"] == 2 * (2 + EPOCHS * N + N)


def test_pairs_on_one_image_share_it(world):
    """Also under another question, and as a copy of the file."""
    first = world.examples[0].prompt
    copied = first.image_path.with_name("copy.png")
    copied.write_bytes(first.image_path.read_bytes())
    examples = [
        replace(one, prompt=replace(one.prompt, image_path=copied if i == 2 else first.image_path))
        for i, one in enumerate(world.examples[:4])
    ]
    lenient = SETTINGS.model_copy(update={"reference_tolerance": 1e3})
    result = fit_dpo(world.load(), examples, lenient, 0)[1]
    assert result.counts["images_encoded"] == 1 + CHECKED
    assert_same_run(
        result, fit_dpo(world.load(), examples, lenient.model_copy(update={"image_features": "never"}), 0)[1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 2])
def test_what_does_not_fit_is_encoded_at_every_sight(world, on_pixels, kept):
    loaded = world.load()
    memory = (kept + 0.5) * one_image(loaded, world.examples[0].prompt)
    result = fit_dpo(loaded, world.examples, SETTINGS.model_copy(update={"image_features_gb": memory / 1e9}), 0)[1]
    assert_same_run(result, on_pixels)
    # What is looked at first is kept, and the comparison looks at the first examples.
    reference = [row for row in random.Random(0).sample(range(N), SETTINGS.reference_sample) if row >= kept]
    assert result.counts["images_encoded"] == 2 * CHECKED + len(reference) + (EPOCHS + 1) * (N - kept)


def one_image(loaded, prompt) -> int:
    features = ImageFeatures(loaded, 1e9)
    features.looks([prompt])
    assert features.encoded == 1
    return features.bytes


def test_memory_is_bounded(world):
    loaded = world.load()
    size = one_image(loaded, world.examples[0].prompt)
    # 64 image tokens, each as wide as the language model, in float32.
    assert size == 64 * loaded.model.config.text_config.hidden_size * 4
    features = ImageFeatures(loaded, 2.5 * size)
    for _ in range(2):
        features.looks([example.prompt for example in world.examples])
    assert features.bytes == 2 * size
    assert features.encoded == N + (N - 2)


def wrong(self, looks, batch=ImageFeatures.batch):
    """Each prompt gets its neighbour's image."""
    return batch([*looks[1:], looks[0]])


def unknown(self, looks):
    raise TypeError("no such features")


@pytest.mark.parametrize(
    ("broken", "match"),
    [(wrong, r"the language model gets something else of encoded images, [\d.]+ apart"), (unknown, "no such features")],
)
def test_what_cannot_be_shown_equal_is_not_used(world, on_pixels, monkeypatch, broken, match):
    monkeypatch.setattr(ImageFeatures, "batch", broken)
    result = fit_dpo(world.load(), world.examples, SETTINGS, 0)[1]
    assert_same_run(result, on_pixels)
    assert result.counts["images_encoded"] == on_pixels.counts["images_encoded"] + 2 * CHECKED
    with pytest.raises(ValueError, match=rf"image_features always: Llava\w+: .*{match}; use auto or never"):
        fit_dpo(world.load(), world.examples, SETTINGS.model_copy(update={"image_features": "always"}), 0)


@pytest.mark.slow
def test_sft_encodes_an_image_once_as_well(world):
    settings = SftSettings(batch_size=BATCH, epochs=EPOCHS, learning_rate=1e-3)
    result = fit_sft(world.load(), world.examples, settings, 0)[1]
    expected = fit_sft(world.load(), world.examples, settings.model_copy(update={"image_features": "never"}), 0)[1]
    assert [row["loss"] for row in result.log] == pytest.approx([row["loss"] for row in expected.log], abs=1e-6)
    assert (result.counts["images_encoded"], expected.counts["images_encoded"]) == (N + CHECKED, (EPOCHS + 1) * N)
