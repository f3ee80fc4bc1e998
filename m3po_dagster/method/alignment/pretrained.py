"""Loads the model of a scorer through transformers: weights whole and from safetensors only.

Code that comes with it is not run unless the study says so of this scorer.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from m3po_dagster.method.alignment.scorer import ModelScorerSettings
from m3po_dagster.method.generation.memory import out_of_memory
from m3po_dagster.method.generation.placement import weights_placement
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.remote_code import TRUST_REMOTE_CODE, check_pinned, loading_from
from m3po_dagster.torchvision_repair import repair_torchvision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin


class PretrainedSettings(ModelScorerSettings):
    """Which model of transformers, in which precision."""

    model: str = Field(
        min_length=1,
        description="folder of a saved model and its processor, or its name on the Hugging Face hub",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub; not used for a folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of the weights; auto takes the one they were saved in"
    )
    trust_remote_code: bool = Field(False, description=TRUST_REMOTE_CODE)

    @model_validator(mode="after")
    def _code_is_pinned(self) -> "PretrainedSettings":
        check_pinned(self.model, self.revision, self.trust_remote_code)
        return self

    def identity(self) -> dict:
        """Whether code of its own makes the scores counts; where it does not, nothing is said of it."""
        found = super().identity()
        if not self.trust_remote_code:
            del found["settings"]["trust_remote_code"]
        return found

    def model_settings(self, device: str) -> ModelSettings:
        """The same as the base model's settings say it, whole on `device`."""
        return ModelSettings(path=self.model, revision=self.revision, dtype=self.dtype, device=device)


class LargePretrainedSettings(PretrainedSettings):
    """A model that may be larger than one GPU."""

    device_map: Literal["none", "auto"] = Field(
        "none",
        description="auto spreads the layers over all GPUs and then the CPU's memory, for a model that one GPU can't "
        "hold; none keeps it whole on the judge's device",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="weights in 8 or 4 bits by bitsandbytes (the extra `quantized`), computing in `dtype`"
    )

    def identity(self) -> dict:
        """Where the layers lie decides no score."""
        found = super().identity()
        del found["settings"]["device_map"]
        return found

    def model_settings(self, device: str) -> ModelSettings:
        """The same as the base model's settings say it; spread models choose their devices themselves."""
        return ModelSettings(
            path=self.model,
            revision=self.revision,
            dtype=self.dtype,
            device=device if self.device_map == "none" else "auto",
            device_map=self.device_map,
            quantization=self.quantization,
        )


def load_config(settings: PretrainedSettings) -> "PreTrainedConfig":
    """The model's config. Raises as `load_pretrained`."""
    repair_torchvision()
    from transformers import AutoConfig

    return _loaded(settings, lambda source: AutoConfig.from_pretrained(settings.model, **source))


def load_pretrained(
    auto_class: Any, settings: PretrainedSettings, device: str, what: str
) -> "tuple[PreTrainedModel, ProcessorMixin]":
    """The model in evaluation mode and its processor; `what` says in an error what the model should be.

    Raises FileNotFoundError when the files can't be found, ValueError when they are no such model, or lack some of its
    weights: transformers alone would go on with random ones.
    """
    repair_torchvision()
    from transformers import AutoProcessor
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    wanted = settings.model_settings(device)
    placement = weights_placement(wanted)
    processor = _loaded(settings, lambda source: AutoProcessor.from_pretrained(settings.model, **source))
    model, loading = _loaded(
        settings,
        lambda source: auto_class.from_pretrained(
            settings.model, use_safetensors=True, output_loading_info=True, **source, **placement
        ),
        what,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"scorer '{settings.name}': model {settings.model!r} is no {what}: its files hold no {missing[0]} (and "
            f"{len(missing) - 1} more weights are missing)"
        )
    if wanted.device_map == "none" and wanted.quantization == "none":
        model = model.to(device)
    return model.eval(), processor


def _loaded(settings: PretrainedSettings, load: Any, what: str = "model with a processor") -> Any:
    from safetensors import SafetensorError

    who = f"scorer '{settings.name}'"
    source = loading_from(who, settings.model, settings.revision, settings.trust_remote_code)
    where = "the folder" if Path(settings.model).is_dir() else "no such folder is here, and the Hugging Face hub"
    try:
        return load(source)
    except OSError as error:
        raise FileNotFoundError(
            f"scorer '{settings.name}': model {settings.model!r}: {where} doesn't give config, safetensors weights and "
            f"processor files ({str(error).splitlines()[0]})"
        ) from error
    except (ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"scorer '{settings.name}': model {settings.model!r} is no {what} that transformers can load: {reason}"
        ) from error
