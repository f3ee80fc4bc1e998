"""How large a study's model is: from its files where they are at hand, else from its name. No weight is loaded."""

import re
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.cost.assumptions import Assumptions
from m3po_dagster.method.generation.settings import ModelSettings

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d{1,3}(?:\.\d{1,2})?)[bB](?![A-Za-z0-9])")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5}


@dataclass(frozen=True)
class ModelFacts:
    """How large a model is; `parameters_from` and `kv_from` say where the figures come from.

    `weight_bytes` as loaded; `bits` of a number that it computes with; `kv_bytes_a_token`: its keys and values.
    """

    parameters: float
    weight_bytes: float
    bits: int
    kv_bytes_a_token: float
    parameters_from: str
    kv_from: str


def model_facts(model: ModelSettings, assumed: Assumptions) -> ModelFacts:
    """Facts of the model of a study; asks no network."""
    folder = folder_of(model)
    counted = _counted(folder) if folder else None
    if counted is not None:
        parameters, source = float(counted), f"the headers of its safetensors files in {folder}"
    elif match := _SIZE.search(model.path):
        parameters, source = float(match[1]) * 1e9, f"its name, {model.path}: the files are not at hand"
    else:
        parameters, source = assumed.parameters, "assumed: the files are not at hand and the name tells no size"
    size = _BYTES[model.dtype]
    kv, kv_from = _kv_values(folder), "its config"
    if kv is None:
        kv_bytes, kv_from = assumed.kv_bytes_a_token, "assumed: the config is not at hand"
    else:
        kv_bytes = float(kv * size)
    weight_bytes = parameters * _QUANTIZED_BYTES.get(model.quantization, size)
    return ModelFacts(parameters, weight_bytes, 8 * size, kv_bytes, source, kv_from)


def folder_of(model: ModelSettings) -> Path | None:
    """The folder with the model's files, that of the hub's cache for a hub name; None when it is not at hand."""
    path = Path(model.path)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.path, revision=model.revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def _counted(folder: Path) -> int | None:
    """Parameters by the headers of the safetensors files; None where there is none, or one that can't be read."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    total = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    total += size
        except (SafetensorError, OSError):
            return None
    return total or None


def _kv_values(folder: Path | None) -> int | None:
    """Numbers of keys and values that a token keeps; None where the config is not at hand or names no heads."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        # Code that comes with a model is not run for an estimate, whatever the study trusts.
        text = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError):
        return None
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    if not layers or not heads:
        return None
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * size
