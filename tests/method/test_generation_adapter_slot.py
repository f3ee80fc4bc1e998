"""Adapters take turns over one loaded model; the base model computes what it did, to the bit."""

import shutil

import pytest

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.resources.generator import GeneratorResource, _warm
from tests.tiny_llava import tiny_llava, tiny_prompts


def saved_adapter(folder, model: str, seed: int, rank: int):
    """A LoRA adapter that does something, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(model)
    peft = get_peft_model(base, LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(seed)
    for name, weights in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.3)
    peft.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("adapters")
    return [saved_adapter(folder / f"a.{seed}", model, seed, rank) for seed, rank in ((1, 4), (2, 8))]


def logits(loaded, prompt):
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        return loaded.model(**inputs.to(dtype=loaded.model.dtype)).logits.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_adapter_answers_as_if_it_were_alone_and_the_base_model_to_the_bit(model, adapters, tmp_path, dtype):
    (prompt,) = tiny_prompts(tmp_path, 1)
    settings = ModelSettings(path=model, dtype=dtype, device="cpu")
    base = logits(load_model(settings), prompt)
    alone = [logits(load_model(settings, adapter), prompt) for adapter in adapters]
    assert all((one - base).abs().max() > 0.05 for one in alone) and (alone[0] - alone[1]).abs().max() > 0.05
    loaded = load_model(settings)
    as_loaded = [name for name, _ in loaded.model.named_modules()]
    for number in (0, 1, None, 1, 0, None, 0):
        loaded.slot.use(None if number is None else adapters[number])
        expected = base if number is None else alone[number]
        assert logits(loaded, prompt).equal(expected), number
        held = sum("lora_A" in name for name, _ in loaded.model.named_parameters())
        layers = sum(name.endswith("q_proj.base_layer.weight") for name, _ in loaded.model.named_parameters())
        assert held == 2 * layers, "one adapter at a time, over q_proj and v_proj"
        assert (layers == 0) is (number is None)
        assert number is not None or [name for name, _ in loaded.model.named_modules()] == as_loaded


def test_a_folder_without_adapter_leaves_the_base_model(model, adapters, tmp_path):
    (prompt,) = tiny_prompts(tmp_path, 1)
    loaded = load_model(ModelSettings(path=model, device="cpu"))
    base = logits(loaded, prompt)
    loaded.slot.use(adapters[0])
    with pytest.raises(FileNotFoundError, match=r"nowhere has no adapter_config\.json"):
        loaded.slot.use(tmp_path / "nowhere")
    assert loaded.slot.current is None and logits(loaded, prompt).equal(base)
    (tmp_path / "half").mkdir()
    shutil.copy(adapters[0] / "adapter_config.json", tmp_path / "half")
    with pytest.raises(FileNotFoundError, match=r"half has no adapter_model\.safetensors"):
        loaded.slot.use(tmp_path / "half")
    assert logits(loaded, prompt).equal(base)


@pytest.mark.parametrize("before", [None, 0])
def test_an_adapter_that_can_not_be_loaded_leaves_the_base_model_and_can_be_tried_again(
    model, adapters, tmp_path, monkeypatch, before
):
    import torch
    from peft import PeftModel

    (prompt,) = tiny_prompts(tmp_path, 1)
    loaded = load_model(ModelSettings(path=model, device="cpu"))
    base = logits(loaded, prompt)
    expected = logits(load_model(ModelSettings(path=model, device="cpu"), adapters[1]), prompt)
    loaded.slot.use(None if before is None else adapters[before])

    def full(*_, **__):
        raise torch.OutOfMemoryError("no room for the weights")

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "load_adapter", full)
        with pytest.raises(torch.OutOfMemoryError):
            loaded.slot.use(adapters[1])
    assert loaded.slot.current is None and logits(loaded, prompt).equal(base)
    loaded.slot.use(None)
    assert logits(loaded, prompt).equal(base)
    loaded.slot.use(adapters[1])
    assert logits(loaded, prompt).equal(expected)


def test_all_recipes_are_answered_on_one_loaded_model(model, adapters, tmp_path, monkeypatch):
    from m3po_dagster.method.generation import model as module

    loads = []
    inner = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *given: loads.append(given) or inner(*given))
    _warm.cache_clear()
    settings, prompts = ModelSettings(path=model, device="cpu"), tiny_prompts(tmp_path, 3)
    resource = GeneratorResource()

    def answers(adapter) -> list[str]:
        engine = TransformersEngine(resource.load(settings, adapter))
        return [answer.text for _, answer in sorted(engine.answer(prompts, 8, 2), key=lambda item: item[0])]

    first, tuned, other, again = answers(None), answers(adapters[0]), answers(adapters[1]), answers(None)
    assert first == again and len({tuple(first), tuple(tuned), tuple(other)}) == 3
    assert len(loads) == 1
    _warm.cache_clear()
