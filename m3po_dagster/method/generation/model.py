"""Loads the vision-language model that answers: base, or with a trained adapter for evaluation."""

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.adapter_slot import AdapterSlot
from m3po_dagster.method.generation.memory import MemoryLimits
from m3po_dagster.method.generation.numerics import of_precision
from m3po_dagster.method.generation.paths import Paths
from m3po_dagster.method.generation.placement import device_of, precision, weights_placement
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.generation.special_tokens import end_of_sequence, placeholders, suppressed
from m3po_dagster.method.remote_code import loading_from
from m3po_dagster.torchvision_repair import repair_torchvision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer.

    `precision` names the weights' dtype and, if there is one, their quantisation. `suppressed` are the token ids that
    must not be sampled, `eos` those that end an answer. `placeholders` are the texts that would stand for an image, and
    `image_token_id` the id that does, None for a model without one. `context` is the longest sequence the language
    model has positions for, None when its config names no limit. `limits` remembers what fitted in memory.
    """

    model: "PreTrainedModel"
    processor: "ProcessorMixin"
    precision: str
    suppressed: tuple[int, ...]
    eos: tuple[int, ...]
    placeholders: tuple[str, ...]
    image_token_id: int | None
    context: int | None
    limits: MemoryLimits = field(default_factory=MemoryLimits)

    @property
    def device(self) -> "torch.device":
        """Where the model takes its inputs."""
        return self.model.device

    @property
    def dtype(self) -> "torch.dtype":
        """What the weights were loaded in; a few parts of some models stay in float32 whatever is asked for."""
        return self.model.config.dtype

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder of its own writes the answer."""
        config = self.model.config
        return config.is_encoder_decoder or config.get_text_config().is_encoder_decoder

    @cached_property
    def paths(self) -> Paths:
        """How this model samples and scores: settled by a few counted forwards when it is first asked for."""
        from m3po_dagster.method.generation.self_check import choose_paths

        return choose_paths(self)

    @cached_property
    def slot(self) -> AdapterSlot:
        """Where a trained adapter is put over the model, and taken away again."""
        return AdapterSlot(self.model)

    @property
    def numerics(self) -> str:
        """Engine and precision: log-probs are comparable only where it is equal."""
        return of_precision(self.precision)


def load_model(settings: ModelSettings, adapter: Path | None = None) -> LoadedModel:
    """Loads model and processor, and the PEFT adapter of a folder over it.

    Code that comes with a model is not run unless `settings.trust_remote_code` says so.

    Raises FileNotFoundError when model or adapter can't be found, ValueError when the files are no vision-language
    model, when CUDA is asked for and missing, or when quantisation is asked for and its library is missing.
    """
    repair_torchvision()
    device = device_of(settings)
    model, processor = load_pretrained(settings)
    if settings.device_map == "none" and settings.quantization == "none":
        model = model.to(device)
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    eos = end_of_sequence(model.generation_config, processor.tokenizer)
    _ask_for_nothing_else(model, eos, processor.tokenizer.pad_token_id)
    dtype = str(model.config.dtype).removeprefix("torch.")
    loaded = LoadedModel(
        # Without gradients from the start, as an adapter that was put over it leaves it: torch rounds otherwise with.
        model=model.eval().requires_grad_(False),
        processor=processor,
        precision=precision(dtype, settings),
        suppressed=suppressed(model.config, processor, eos),
        eos=eos,
        placeholders=placeholders(model.config, processor),
        image_token_id=getattr(model.config, "image_token_id", None),
        context=getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None),
    )
    loaded.slot.use(adapter)
    return loaded


def load_pretrained(settings: ModelSettings) -> "tuple[PreTrainedModel, ProcessorMixin]":
    """Model and processor as they were published, without the progress bars of a log. Raises as `load_model` does."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
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
    placement = weights_placement(settings)
    source = loading_from("model", path, revision, settings.trust_remote_code)
    try:
        # The config first: without a hub, every file the processor looks for would wait through retries of its own.
        AutoConfig.from_pretrained(path, **source)
        processor = AutoProcessor.from_pretrained(path, **source)
        model = AutoModelForImageTextToText.from_pretrained(path, use_safetensors=True, **source, **placement)
    except OSError as error:
        raise FileNotFoundError(
            f"model.path {path!r}: {where} doesn't give config, weights and processor files: name the folder of a "
            f"saved model and processor, or a hub model that can be downloaded ({str(error).splitlines()[0]})"
        ) from error
    except (ValueError, ImportError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.path {path!r} is no vision-language model transformers can load: {reason}") from error
    return model, processor


@contextlib.contextmanager
def without_deprecation() -> Iterator[None]:
    """Hides the warnings with which TRL's and peft's use of transformers' old names would greet every run."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`\w*gradient_checkpointing\w*` is deprecated", category=FutureWarning
        )
        yield


def _ask_for_nothing_else(model: "PreTrainedModel", eos: tuple[int, ...], pad_token_id: int) -> None:
    """Takes away what a published generation config asks for beside: beams, penalties, lengths, another temperature.

    It would enter every `generate`, that of a language model inside (BLIP-2) too; how samples are drawn is the study's.
    """
    from transformers import GenerationConfig

    for module in model.modules():
        published = getattr(module, "generation_config", None)
        if published is not None:
            module.generation_config = GenerationConfig(
                eos_token_id=list(eos),
                pad_token_id=pad_token_id,
                bos_token_id=published.bos_token_id,
                decoder_start_token_id=published.decoder_start_token_id,
            )
