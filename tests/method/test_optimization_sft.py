"""What an SFT run on R_w does and leaves behind; that its numbers are TRL's is in test_optimization_oracle."""

from dataclasses import replace

import pytest
from optimization_world import World, plain_logp

from m3po_dagster.method.optimization.settings import SftSettings
from m3po_dagster.method.optimization.sft import train_sft

N = 10
SETTINGS = SftSettings(batch_size=4, epochs=2, learning_rate=5e-3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("sft"), N, same_words=True)


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter")
    return out, train_sft(world.settings, world.examples, SETTINGS, 0, out)


def test_it_raises_the_chosen_answers(adapter):
    _, result = adapter
    assert result.log[-1]["loss"] < 0.9 * result.log[0]["loss"]
    assert all(row["chosen_logp_after"] > row["chosen_logp_before"] + 0.5 for row in result.margins)
    assert {row["rejected_logp_after"] for row in result.margins} == {None}
    assert {row["reward_margin"] for row in result.margins} == {None}


def test_one_row_an_example_passes_through_the_model(adapter):
    _, result = adapter
    assert [row["pairs_seen"] for row in result.log] == [4, 8, 10, 14, 18, 20]
    rows = SETTINGS.epochs * N + N
    # An image once, and those of a batch once more as pixels, to be compared.
    images = N + SETTINGS.batch_size
    assert result.counts == {"language_model_forwards": 6 + 3, "sequences": rows, "images_encoded": images}


def test_the_warm_up_starts_at_zero(adapter):
    _, result = adapter
    rates = [row["learning_rate"] for row in result.log]
    assert rates[0] == 0
    assert rates[1] == max(rates) == SETTINGS.learning_rate


def test_the_adapter_gives_the_log_probs_after_training(adapter, world):
    out, result = adapter
    loaded = world.load(adapter=out)
    for row, example in zip(result.margins, world.examples, strict=True):
        logp = plain_logp(loaded, example.prompt, example.chosen_ids)
        assert logp == pytest.approx(row["chosen_logp_after"], abs=1e-4)


def test_rejected_answers_are_ignored(adapter, world, tmp_path):
    out, _ = adapter
    alone = [replace(example, rejected_ids=None, ref_rejected_logp=None) for example in world.examples]
    train_sft(world.settings, alone, SETTINGS, 0, tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_no_examples_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match="no examples to train on"):
        train_sft(world.settings, [], SETTINGS, 0, tmp_path)
