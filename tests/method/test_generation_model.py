"""Loading: what is missing is named, an adapter changes the answers as PEFT says it does."""

import json
import shutil

import pytest
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.sampling import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """A LoRA adapter of the language model, as a trainer leaves it, with weights that matter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")
    adapted = get_peft_model(model, lora)
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    where = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(where)
    return where


def logits_of(model, loaded, prompt):
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)
    inputs = inputs.to(dtype=model.dtype)
    with torch.inference_mode():
        return model(**inputs).logits.float()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_is_applied(folder, adapter, tmp_path, dtype):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    (prompt,) = tiny_prompts(tmp_path, 1)
    base = load_model(ModelSettings(path=str(folder), dtype=dtype, device="cpu"))
    tuned = load_model(ModelSettings(path=str(folder), dtype=dtype, device="cpu"), adapter)
    expected = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype)), adapter
    ).eval()
    theirs, ours = logits_of(expected, tuned, prompt), logits_of(tuned.model, tuned, prompt)
    torch.testing.assert_close(ours, theirs, atol=1e-5 if dtype == "float32" else 0.05, rtol=1e-4)
    assert (logits_of(base.model, base, prompt) - ours).abs().max() > 0.1
    assert base.numerics == tuned.numerics == f"transformers/{dtype}"
    settings = SamplingSettings(n=4, max_new_tokens=8)
    tokens = [[one.token_ids for one in sample(m, [prompt], settings, [0])[0]] for m in (base, tuned)]
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("path", ["/no/such/folder", "owner/absent-model"])
def test_missing_model_is_named(path):
    with pytest.raises(FileNotFoundError, match=rf"model\.path '{path}'"):
        load_model(ModelSettings(path=path))


def test_incomplete_folder_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"model\.path '{tmp_path}': the folder has no config\.json"):
        load_model(ModelSettings(path=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ValueError, match=rf"model\.path '{tmp_path}' is no vision-language model"):
        load_model(ModelSettings(path=str(tmp_path)))


def test_damaged_weights_are_named(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"model\.path '{tmp_path}'"):
        load_model(ModelSettings(path=str(tmp_path)))


def test_missing_weights_are_named(folder, tmp_path):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=rf"model\.path '{tmp_path}': the folder doesn't give config, weights"):
        load_model(ModelSettings(path=str(tmp_path)))


def test_pickled_weights_are_never_read(folder, tmp_path):
    """Reading a pickle can run anything."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no file named model\.safetensors"):
        load_model(ModelSettings(path=str(tmp_path), device="cpu"))


def test_missing_adapter_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"adapter folder {tmp_path} has no adapter_config.json"):
        load_model(ModelSettings(path=str(folder)), tmp_path)


def test_a_tokenizer_that_pads_with_the_end_can_still_end(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_model(ModelSettings(path=str(tmp_path)))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    assert not set(loaded.eos) & set(loaded.suppressed)


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(ValueError, match=rf"model\.path '{tmp_path}' is no vision-language model"):
        load_model(ModelSettings(path=str(tmp_path)))
    assert not (tmp_path / "was_run").exists()


def test_the_devices_are_chosen_once():
    with pytest.raises(ValueError, match="device_map auto chooses the devices itself: leave out device cpu"):
        ModelSettings(path="model", device="cpu", device_map="auto")


@pytest.mark.parametrize("settings", [{"device_map": "auto"}, {"dtype": "auto"}])
def test_placed_by_accelerate_or_in_the_saved_precision_it_answers_the_same(folder, tmp_path, settings):
    prompts, sampling = tiny_prompts(tmp_path, 2), SamplingSettings(n=4, max_new_tokens=8)
    usual, other = load_model(ModelSettings(path=str(folder))), load_model(ModelSettings(path=str(folder), **settings))
    assert other.precision == "float32"
    assert sample(other, prompts, sampling, [0, 1]) == sample(usual, prompts, sampling, [0, 1])


def test_layers_that_no_memory_holds_are_read_from_disk(folder, tmp_path, monkeypatch):
    """What device_map auto does with a model that is larger than all memory, on one that is not."""
    from m3po_dagster.method.confidence import score_continuations
    from m3po_dagster.method.generation import model

    prompts, sampling = tiny_prompts(tmp_path, 2), SamplingSettings(n=4, max_new_tokens=8)
    settings = ModelSettings(path=str(folder), device_map="auto")
    usual = load_model(settings)
    parts = [name for name, _ in usual.model.named_modules() if name.count(".") == 1]
    spread = {name: "cpu" for name in parts if name != "model.language_model"} | {"lm_head": "cpu"}
    spread |= {f"model.language_model.{name}": "cpu" for name, _ in usual.model.get_decoder().named_children()}
    del spread["model.language_model.layers"]
    spread |= {f"model.language_model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(3)}
    placed = model.weights_placement(settings) | {"device_map": spread, "offload_folder": str(tmp_path / "offload")}
    monkeypatch.setattr(model, "weights_placement", lambda settings: placed)
    other = load_model(settings)
    assert {weight.device.type for weight in other.model.parameters()} == {"cpu", "meta"}
    assert other.paths == usual.paths
    expected = sample(usual, prompts, sampling, [0, 1])
    assert sample(other, prompts, sampling, [0, 1]) == expected
    answers = [one.token_ids for one in expected[0]]
    assert score_continuations(other, prompts[0], answers) == score_continuations(usual, prompts[0], answers)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_the_same_paths(folder, tmp_path, dtype):
    from m3po_dagster.method.confidence import score_continuations

    loaded = load_model(ModelSettings(path=str(folder), dtype=dtype, device="cpu"))
    assert (loaded.paths.sampling, loaded.paths.scoring) == ("shared-prefix", "packed")
    (prompt,) = tiny_prompts(tmp_path, 1)
    (samples,) = sample(loaded, [prompt], SamplingSettings(n=4, max_new_tokens=8), [0])
    for one, scored in zip(
        samples, score_continuations(loaded, prompt, [one.token_ids for one in samples]), strict=True
    ):
        assert scored.token_logps == pytest.approx(one.token_logps, abs=0.2)


def test_quantisation_without_its_library_is_refused(folder, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(
        ValueError,
        match=r"model\.quantization is 4bit, but bitsandbytes is not installed: pip install -c .*\[quantized\]",
    ):
        load_model(ModelSettings(path=str(folder), quantization="4bit"))
