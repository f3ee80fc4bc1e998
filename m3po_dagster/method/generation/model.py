"""Loads the vision-language model that answers: base, or with a trained adapter for evaluation."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.torchvision_repair import repair_torchvision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    `numerics` names engine, precision and device: log-probs are comparable only where it is equal. `suppressed` are the
    token ids that must not be sampled (image placeholder, padding, begin of sequence, unknown), `eos` those that end an
    answer. `context` is the longest sequence the language model has positions for, None when its config names no limit.
    """

    model: "PreTrainedModel"
    processor: "ProcessorMixin"
    device: "torch.device"
    numerics: str
    suppressed: tuple[int, ...]
    eos: tuple[int, ...]
    context: int | None

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def load_model(settings: ModelSettings, adapter: Path | None = None) -> LoadedModel:
    """Loads model and processor, and the PEFT adapter of a folder over it.

    Raises FileNotFoundError when model or adapter can't be found, ValueError when the files are no vision-language
    model or CUDA is asked for and missing.
    """
    repair_torchvision()
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from m3po_dagster.method.generation import shared_prefix

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but torch sees no CUDA device: use auto or cpu")
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    # Checked first: without a hub, every file the processor looks for would wait through its own retries.
    if not Path(settings.path).is_dir() and not HUB_NAME.fullmatch(settings.path):
        raise FileNotFoundError(
            f"model.path {settings.path!r}: there is no such folder, and no hub model has such a name"
        )
    try:
        AutoConfig.from_pretrained(settings.path, revision=settings.revision)
        processor = AutoProcessor.from_pretrained(settings.path, revision=settings.revision)
        model = AutoModelForImageTextToText.from_pretrained(
            settings.path, revision=settings.revision, dtype=getattr(torch, settings.dtype)
        )
    except OSError as error:
        is_folder = Path(settings.path).is_dir()
        what = "has no complete model and processor" if is_folder else "is no folder here, nor could the hub give it"
        raise FileNotFoundError(
            f"model.path {settings.path!r} {what}: name a folder with config.json, weights and processor files, "
            f"or a hub model that can be downloaded ({str(error).splitlines()[0]})"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"model.path {settings.path!r} is no vision-language model that transformers can load: "
            f"{str(error).splitlines()[0]}"
        ) from error
    model.set_attn_implementation({_language_config_key(model.config): shared_prefix.register()})
    if adapter is not None:
        model = _with_adapter(model, adapter, merge=settings.dtype == "float32")
    eos = _ids(model.generation_config.eos_token_id) or _ids(processor.tokenizer.eos_token_id)
    return LoadedModel(
        model=model.to(device).eval(),
        processor=processor,
        device=device,
        numerics=f"transformers/{settings.dtype}/{device.type}",
        suppressed=_suppressed(model.config, processor, eos),
        eos=eos,
        context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )


def _language_config_key(config) -> str:
    """Under which name the language model's own config sits inside the whole model's config."""
    text_config = config.get_text_config()
    return next((key for key in config.sub_configs if getattr(config, key) is text_config), "")


def _with_adapter(model, folder: Path, merge: bool):
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"adapter folder {folder} has no adapter_config.json: name a folder that PEFT saved")
    adapted = PeftModel.from_pretrained(model, str(folder))
    # In half precision a merged weight rounds most of a small update away; beside the weight it keeps its own exponent.
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _suppressed(config, processor, eos: tuple[int, ...]) -> tuple[int, ...]:
    tokenizer = processor.tokenizer
    image = (getattr(config, "image_token_id", None), getattr(processor, "image_token_id", None))
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    # Many tokenizers pad with the end of sequence, and an answer must be able to end.
    return tuple(sorted({i for i in (*image, *special) if i is not None} - set(eos)))
