"""The LoRA adapter: which layers it covers, and how it is written (paper, section 3.6)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.settings import LoraSettings

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel

FOUR_BITS_ON_A_CPU = "4-bit weights can't be trained on a CPU: use a GPU, 8bit, or no quantization (model, training)"


def language_model_and_tower(model: Any) -> tuple[Any, Any]:
    """The modules of `model` that read the text, its LM head apart, and the image.

    Raises ValueError when transformers can't tell them apart, so that nothing is trained that should stay frozen.
    """
    # InstructBLIP says so of its language model only.
    if model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} has an encoder-decoder language model, which reads prompt and answer apart: "
            "training needs one that continues the prompt (of BLIP-2 and InstructBLIP, the OPT and Vicuna versions)"
        )
    decoder, tower = model.get_decoder(), model.get_encoder(modality="image")
    # Some models name the whole language model, LM head included, which in turn names the part before it.
    while decoder.get_decoder() is not decoder:
        decoder = decoder.get_decoder()
    if tower is None or tower is model or decoder is model or any(module is tower for module in decoder.modules()):
        raise ValueError(
            f"{type(model).__name__} has no language model apart from a vision tower: an adapter on one would not "
            "leave the other alone; use a model with both"
        )
    return decoder, tower


def check_trainable(loaded: LoadedModel) -> None:
    """Raises ValueError for 4-bit weights on a CPU."""
    if loaded.precision.endswith("+4bit") and loaded.device.type == "cpu":
        # bitsandbytes packs them for a product that has no gradient: most of the adapter would silently stay as it is.
        raise ValueError(FOUR_BITS_ON_A_CPU)


def language_model_linears(model: Any) -> str:
    """A regular expression that matches the full names of the language model's linear layers, and nothing else.

    A plain list such as `q_proj` would also match the vision tower, whose layers bear the same names. The LM head,
    outside the language model's path, is left out. Raises ValueError as `language_model_and_tower` does.
    """
    import torch

    decoder, _ = language_model_and_tower(model)
    path = next(name for name, module in model.named_modules() if module is decoder)
    layers = [name for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)]
    kinds = sorted({name.rsplit(".", 1)[-1] for name in layers})
    return rf"{re.escape(path)}\..*\.({'|'.join(map(re.escape, kinds))})"


def lora_config(model: Any, settings: LoraSettings) -> "LoraConfig":
    """peft's configuration of the adapter for `model`."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=language_model_linears(model),
        task_type="CAUSAL_LM",
    )


def save_adapter(
    model: "PeftModel", base_model: ModelSettings, out: Path, state_dict: "Mapping[str, torch.Tensor] | None" = None
) -> None:
    """Writes `adapter_model.safetensors` and `adapter_config.json` to the folder `out`, for peft to load.

    The config names `base_model`: its name and revision on the hub, or its folder's own name, never the folder's place.
    `state_dict` holds the model's weights where `model` has only a part of them.
    """
    import copy

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config["default"])
    is_folder = Path(base_model.path).is_dir()
    config.base_model_name_or_path = Path(base_model.path).resolve().name if is_folder else base_model.path
    config.revision = None if is_folder else base_model.revision
    config.inference_mode = True
    weights = get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
    save_file(
        {name: weight.contiguous().cpu() for name, weight in weights.items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(out))
