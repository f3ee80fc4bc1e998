"""Size and prompt tokens of a model, against the model itself loaded."""

from pathlib import Path

import pytest
from PIL import Image

from m3po_dagster.cost.assumptions import Assumptions
from m3po_dagster.cost.estimate import Workload
from m3po_dagster.cost.model_facts import folder_of, model_facts
from m3po_dagster.cost.prompt_tokens import tokens_beside_text, with_own_tokens
from m3po_dagster.method.generation.encoding import encode
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.prompt import Message, Prompt

LLAVA = Path(__file__).parents[2] / "m3po_dagster" / "world" / "weights" / "llava"
ASSUMED = Assumptions()


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelSettings(path=str(LLAVA), device="cpu"))


def test_parameters_and_cache_are_the_loaded_models_own(loaded):
    import torch

    facts = model_facts(ModelSettings(path=str(LLAVA)), ASSUMED)
    # A tied head is one tensor in the file.
    own = {weight.data_ptr(): weight.numel() for weight in loaded.model.state_dict().values()}
    assert facts.parameters == sum(own.values()) and str(LLAVA) in facts.parameters_from
    assert facts.weight_bytes == 4 * facts.parameters and facts.bits == 32
    inputs = torch.ones(1, 7, dtype=torch.long)
    cache = loaded.model.model.language_model(inputs, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert facts.kv_bytes_a_token == held / 7


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7e9),
        ("llava-hf/llava-1.5-13b-hf", 13e9),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 72e9),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2.2e9),
        ("lab/a-model", 7e9),
        ("lab/vit-b16", 7e9),
        ("lab/model-7bit", 7e9),
    ],
)
def test_a_model_that_is_not_at_hand_goes_by_its_name(name, parameters, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    facts = model_facts(ModelSettings(path=name, dtype="bfloat16"), ASSUMED)
    assert facts.parameters == parameters and facts.weight_bytes == 2 * parameters and facts.bits == 16
    assert facts.kv_bytes_a_token == ASSUMED.kv_bytes_a_token and "not at hand" in facts.kv_from
    assert ("name tells no size" in facts.parameters_from) == (name.startswith("lab/"))


def test_quantised_weights_are_smaller_and_compute_in_their_dtype():
    settings = ModelSettings(path="lab/a-7b", dtype="bfloat16", quantization="4bit")
    facts = model_facts(settings, ASSUMED)
    assert (facts.weight_bytes, facts.bits) == (3.5e9, 16)


def test_a_folder_without_weights_or_with_broken_ones_is_not_at_hand(tmp_path):
    folder = tmp_path / "model-3b"
    folder.mkdir()
    for _ in range(2):
        facts = model_facts(ModelSettings(path=str(folder)), ASSUMED)
        assert facts.parameters == 3e9 and "not at hand" in facts.kv_from
        (folder / "model.safetensors").write_bytes(b"cut short")
        (folder / "config.json").write_text("{}")


def test_names_of_no_model_have_no_folder():
    assert folder_of(ModelSettings(path="no/such/place/at/all")) is None
    assert folder_of(ModelSettings(path="somebody/nothing-cached")) is None


def test_tokens_beside_the_text_are_those_of_a_real_prompt(loaded, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    question = "How many objects are there?"
    ids = encode(loaded, [Prompt("p", path, (Message("user", question),))]).inputs["input_ids"]
    text = len(loaded.tokenizer(question, add_special_tokens=False)["input_ids"])
    beside = tokens_beside_text(ModelSettings(path=str(LLAVA)), [(64, 64), (64, 64), (300, 200)])
    assert beside == ids.shape[1] - text
    work = with_own_tokens(Workload(3, 20.0), ModelSettings(path=str(LLAVA)))
    assert work.beside_text == beside


def test_without_the_model_there_are_none(tmp_path):
    assert tokens_beside_text(ModelSettings(path="somebody/nothing-cached"), []) is None
    assert tokens_beside_text(ModelSettings(path=str(tmp_path)), []) is None
