"""Where the weights go and in how many bits: settings in, arguments of `from_pretrained` out."""

import importlib.util
from typing import Any

from m3po_dagster.method.generation.settings import ModelSettings


def device_of(settings: ModelSettings) -> str:
    """The one device of a model that is not spread. Raises ValueError when CUDA is asked for and missing."""
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but torch sees no CUDA device: use auto or cpu")
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def precision(dtype: str, settings: ModelSettings) -> str:
    """How the precision of weights loaded in `dtype` is named, with their quantisation if there is one."""
    return dtype if settings.quantization == "none" else f"{dtype}+{settings.quantization}"


def weights_placement(settings: ModelSettings) -> dict[str, Any]:
    """The arguments `dtype`, `device_map` and `quantization_config`, as far as the settings ask for them.

    Raises ValueError when quantisation is asked for and bitsandbytes is missing.
    """
    import torch

    arguments: dict[str, Any] = {
        "dtype": settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    }
    if settings.device_map == "auto":
        arguments["device_map"] = "auto"
    if settings.quantization != "none":
        # Quantised on arrival: the whole model never lies there in full.
        arguments.setdefault("device_map", device_of(settings))
        arguments["quantization_config"] = _quantisation(settings)
    return arguments


def _quantisation(settings: ModelSettings) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"model.quantization is {settings.quantization}, but bitsandbytes is not installed: "
            "pip install -c constraints.txt -e '.[quantized]', or leave the setting out"
        )
    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    # The weights' own dtype would be float32 for many a saved model: products then run in twice the memory.
    compute = torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
