"""8- and 4-bit weights by bitsandbytes, for real: it also runs on a CPU."""

import json

import pytest
from tiny_llava import QUESTIONS, WORDS, tiny_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.sampling import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA whose layers are whole blocks of 64 weights, as 4-bit products on a CPU need them."""
    from m3po_dagster.world.small_llava import new_llava, new_processor

    folder = tmp_path_factory.mktemp("llava")
    words = "".join(c if c.isalnum() else " " for c in " ".join([WORDS, *QUESTIONS])).split()
    processor = new_processor(dict.fromkeys(words))
    new_llava(processor.tokenizer, seed=0, hidden=128).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny_prompts(tmp_path_factory.mktemp("images"), 3)


@pytest.mark.parametrize(("bits", "linear"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_it_samples_and_scores_on_quantised_weights(folder, prompts, bits, linear):
    import bitsandbytes
    import torch

    full = load_model(ModelSettings(path=str(folder), dtype="float16", device="cpu"))
    loaded = load_model(ModelSettings(path=str(folder), dtype="float16", device="cpu", quantization=bits))
    layers = {type(m) for m in loaded.model.get_decoder().modules() if isinstance(m, torch.nn.Linear)}
    assert layers == {getattr(bitsandbytes.nn, linear)}
    assert loaded.model.get_memory_footprint() < (0.7 if bits == "8bit" else 0.5) * full.model.get_memory_footprint()
    assert loaded.numerics == f"transformers/float16+{bits}"
    assert loaded.paths.scoring == "packed"
    found = sample(loaded, prompts, SamplingSettings(n=4, max_new_tokens=10), range(3))
    for prompt, samples in zip(prompts, found, strict=True):
        scores = score_continuations(loaded, prompt, [one.token_ids for one in samples])
        for one, scored in zip(samples, scores, strict=True):
            assert scored.token_logps == pytest.approx(one.token_logps, abs=0.1)


def test_an_adapter_stays_beside_quantised_weights(folder, prompts, tmp_path):
    """Merged into four bits it would mostly be rounded away."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(AutoModelForImageTextToText.from_pretrained(folder), lora).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    settings = ModelSettings(path=str(folder), dtype="float16", device="cpu", quantization="4bit")
    base, tuned = load_model(settings), load_model(settings, tmp_path)
    assert any("lora_A" in name for name, _ in tuned.model.named_parameters())
    answers = [[7, 8, 9, 10]]
    one, other = (score_continuations(loaded, prompts[0], answers)[0] for loaded in (base, tuned))
    assert abs(one.sum_logp - other.sum_logp) > 0.1


def test_an_adapter_is_trained_on_eight_bits_and_refused_on_four_on_a_cpu(folder, prompts, tmp_path):
    from m3po_dagster.method.optimization.dpo import train_dpo
    from m3po_dagster.method.optimization.examples import PreferenceExample
    from m3po_dagster.method.optimization.settings import DpoSettings

    eight, four = (
        ModelSettings(path=str(folder), dtype="float16", device="cpu", quantization=bits) for bits in ("8bit", "4bit")
    )
    loaded, examples = load_model(eight), []
    for prompt in prompts:
        answers = [[7, 8, 9, 10], [11, 12, 13]]
        logps = [one.sum_logp for one in score_continuations(loaded, prompt, answers)]
        examples.append(PreferenceExample(prompt.prompt_id, prompt, *map(tuple, answers), *logps))
    training = DpoSettings(batch_size=1, learning_rate=1e-3, warmup_ratio=0, reference_tolerance=0.5)
    train_dpo(eight, examples, training, 0, tmp_path / "out")
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    moved = {name: bool(weight.any()) for name, weight in weights.items() if "lora_B" in name}
    assert moved and all(moved.values()), [name for name, found in moved.items() if not found]
    with pytest.raises(ValueError, match="4-bit weights can't be trained on a CPU"):
        train_dpo(four, examples, training, 0, tmp_path / "none")
