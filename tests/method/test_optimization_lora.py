"""Which layers get an adapter, in architectures whose towers use the language model's layer names."""

import re

import pytest

from m3po_dagster.method.optimization.lora import language_model_linears
from m3po_dagster.torchvision_repair import repair_torchvision


def llava():
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

    text = AutoConfig.for_model("mistral", num_hidden_layers=2)
    vision = AutoConfig.for_model("siglip_vision_model", num_hidden_layers=2)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)), "model.language_model."


def qwen():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(text_config={"num_hidden_layers": 2}, vision_config={"depth": 2})
    return Qwen2VLForConditionalGeneration(config), "model.language_model."


def instructblip():
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

    text = {"model_type": "llama", "num_hidden_layers": 2}
    config = InstructBlipConfig(
        text_config=text, vision_config={"num_hidden_layers": 2}, qformer_config={"num_hidden_layers": 2}
    )
    return InstructBlipForConditionalGeneration(config), "language_model.model."


@pytest.mark.parametrize("architecture", [llava, qwen, instructblip])
def test_every_linear_of_the_language_model_and_nothing_else(architecture):
    repair_torchvision()
    import torch

    with torch.device("meta"):
        model, path = architecture()
    pattern = language_model_linears(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    matched = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    assert matched == {name for name in linears if name.startswith(path)}
    assert len(matched) == 2 * 7, "two layers of four attention and three feed-forward matrices"
    assert any(name.endswith("q_proj") or "qkv" in name for name in linears - matched), "the tower has such layers too"


def test_an_encoder_decoder_is_refused():
    repair_torchvision()
    import torch
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

    config = InstructBlipConfig(
        text_config={"model_type": "t5", "num_layers": 1},
        vision_config={"num_hidden_layers": 1},
        qformer_config={"num_hidden_layers": 1},
    )
    with torch.device("meta"):
        model = InstructBlipForConditionalGeneration(config)
    with pytest.raises(ValueError, match="InstructBlipForConditionalGeneration has an encoder-decoder language model"):
        language_model_linears(model)


def test_a_model_whose_parts_cannot_be_told_apart_is_refused():
    repair_torchvision()
    import torch
    from transformers import FuyuConfig, FuyuForCausalLM

    # Fuyu has no vision tower: its language model reads the patches themselves.
    with torch.device("meta"):
        model = FuyuForCausalLM(FuyuConfig(text_config={"model_type": "persimmon", "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="FuyuForCausalLM has no language model apart from a vision tower"):
        language_model_linears(model)
