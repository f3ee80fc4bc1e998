"""Loading: what is missing is named, an adapter changes the answers as PEFT says it does."""

import json

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
