"""Loads the vision-language model that answers: base, or with a trained adapter for evaluation."""

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.numerics import of_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.torchvision_repair import repair_torchvision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    `numerics` names engine and precision: log-probs are comparable only where it is equal. `suppressed` are the token
    ids that must not be sampled (image placeholder, padding, begin of sequence, unknown), `eos` those that end an
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
    from transformers.utils import logging

    from m3po_dagster.method.generation import shared_prefix

    if not sys.stderr.isatty():
        logging.disable_progress_bar()

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but torch sees no CUDA device: use auto or cpu")
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    model, processor = _load(settings)
    model.set_attn_implementation({_language_config_key(model.config): shared_prefix.register()})
    if adapter is not None:
        model = _with_adapter(model, adapter, merge=settings.dtype == "float32")
    eos = eos_ids(model.generation_config, processor.tokenizer)
    return LoadedModel(
        model=model.to(device).eval(),
        processor=processor,
        device=device,
        numerics=of_model(settings),
        suppressed=suppressed_ids(model.config, processor, eos),
        eos=eos,
        context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )


def _load(settings: ModelSettings) -> "tuple[PreTrainedModel, ProcessorMixin]":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    path, revision = settings.path, settings.revision
    if Path(path).is_dir():
        where = "the folder"
        if not Path(path, "config.json").is_file():
            raise FileNotFoundError(f"model.path {path!r}: the folder has no config.json: no model was saved in it")
    elif HUB_NAME.fullmatch(path):
        where = "no such folder is here, and the Hugging Face hub"
    else:
        raise FileNotFoundError(
            f"model.path {path!r}: there is no such folder, and no model on the hub has such a name"
        )
    try:
        # The config first: without a hub, every file the processor looks for would wait through retries of its own.
        AutoConfig.from_pretrained(path, revision=revision)
        processor = AutoProcessor.from_pretrained(path, revision=revision)
        model = AutoModelForImageTextToText.from_pretrained(
            path, revision=revision, dtype=getattr(torch, settings.dtype)
        )
    except OSError as error:
        raise FileNotFoundError(
            f"model.path {path!r}: {where} doesn't give config, weights and processor files: name the folder of a "
            f"saved model and processor, or a hub model that can be downloaded ({str(error).splitlines()[0]})"
        ) from error
    except (ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.path {path!r} is no vision-language model transformers can load: {reason}") from error
    return model, processor


@contextlib.contextmanager
def without_deprecation() -> Iterator[None]:
    """Hides the one warning with which TRL's and peft's use of transformers' old name would greet every run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _language_config_key(config) -> str:
    """Under which name the language model's own config sits inside the whole model's config."""
    text_config = config.get_text_config()
    return next((key for key in config.sub_configs if getattr(config, key) is text_config), "")


def _with_adapter(model, folder: Path, merge: bool):
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"adapter folder {folder} has no adapter_config.json: name a folder that PEFT saved")
    with without_deprecation():
        adapted = PeftModel.from_pretrained(model, str(folder))
    # In half precision a merged weight rounds most of a small update away; beside the weight it keeps its own exponent.
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def eos_ids(generation_config, tokenizer) -> tuple[int, ...]:
    """The ids that end an answer."""
    return _ids(generation_config.eos_token_id) or _ids(tokenizer.eos_token_id)


def suppressed_ids(config, processor, eos: tuple[int, ...]) -> tuple[int, ...]:
    """The ids that must not be sampled; see `LoadedModel`."""
    tokenizer = processor.tokenizer
    image = (getattr(config, "image_token_id", None), getattr(processor, "image_token_id", None))
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    # Many tokenizers pad with the end of sequence, and an answer must be able to end.
    return tuple(sorted({i for i in (*image, *special) if i is not None} - set(eos)))
