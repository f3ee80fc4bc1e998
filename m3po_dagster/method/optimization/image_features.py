"""Encodes each image once a run: what the frozen vision tower and projector make of it is kept, and given instead.

    features = ImageFeatures(loaded, most_bytes)
    features.serve()                        # the model's forward takes `image_features` from now on

transformers' models take encoded images in place of pixels (`mm_encoder_outputs`). Whether the language model then gets
what it gets from pixels is looked at for the model and images at hand (`difference`); a family that has no such input,
or encodes several images otherwise than one by itself, shows there.
"""

import functools
import hashlib
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.encoding import encode, grown
from m3po_dagster.method.generation.memory import out_of_memory
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.self_check import step
from m3po_dagster.method.optimization.lora import language_model_and_tower
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch

    from m3po_dagster.method.optimization.batches import Batches
    from m3po_dagster.method.optimization.settings import AnswerTrainingSettings

_LOG = logging.getLogger(__name__)

# What the language model never gets: the tower's own states, layer by layer.
_INTERNAL = frozenset({"last_hidden_state", "hidden_states", "attentions", "vision_outputs", "qformer_outputs"})


@dataclass(frozen=True)
class Looked:
    """A prompt as the processor gives it, without padding, and what the tower made of its image.

    `tokens`: the tensors along the tokens, (1, length, ...). `beside`: what else the model takes with encoded images
    (their sizes or grids), (1, ...). `features`: tensors by name, or lists of them.
    """

    tokens: "dict[str, torch.Tensor]"
    beside: "dict[str, torch.Tensor]"
    features: dict[str, Any]


class ImageFeatures:
    """The features of images seen so far, on the CPU, `most_bytes` at most; an image beyond is encoded when it is seen.

    Features are kept by what the model is given of an image (in some families the question goes into it), so that
    prompts on one image share them. `encoded` counts the images that the tower got.
    """

    def __init__(self, loaded: LoadedModel, most_bytes: float) -> None:
        self.encoded = 0
        self.bytes = 0
        self._loaded = loaded
        self._most_bytes = most_bytes
        self._prompts: dict[Prompt, tuple[Looked, str]] = {}
        self._features: dict[str, dict[str, Any]] = {}
        self._output_class: type | None = None

    def looks(self, prompts: Sequence[Prompt]) -> list[Looked]:
        """Each prompt, its image encoded or remembered. Raises PromptError for one that can't be read."""
        once = {prompt: self._look(prompt) for prompt in dict.fromkeys(prompts)}
        return [once[prompt] for prompt in prompts]

    def _look(self, prompt: Prompt) -> Looked:
        import torch

        if prompt in self._prompts:
            return self._prompts[prompt]
        encoded = encode(self._loaded, [prompt])
        if encoded.inputs is None:
            raise encoded.errors[0]
        model, inputs = self._loaded.model, dict(encoded.inputs)
        tokens = {name: inputs.pop(name) for name in ("input_ids", *grown(model, inputs)) if name in inputs}
        seen = hashlib.sha256()
        for name, tensor in sorted(inputs.items()):
            seen.update(f"{name} {tuple(tensor.shape)}".encode())
            seen.update(tensor.contiguous().view(torch.uint8).numpy().data)
        key = seen.hexdigest()
        features = self._features.get(key)
        if features is None:
            features = self._encode(inputs)
            size = sum(tensor.nbytes for tensor in _tensors(features))
            if self.bytes + size <= self._most_bytes:
                self.bytes += size
                self._features[key] = features
        looked = Looked(tokens, {name: inputs[name] for name in inputs if not name.startswith("pixel")}, features)
        if key in self._features:
            self._prompts[prompt] = looked
        return looked

    def _encode(self, inputs: "dict[str, torch.Tensor]") -> dict[str, Any]:
        import torch

        model = self._loaded.model
        taken = inspect.signature(model.get_image_features).parameters
        given = {name: tensor.to(model.device) for name, tensor in inputs.items() if name in taken}
        with torch.no_grad():
            output = model.get_image_features(**given, return_dict=True)
        self._output_class = type(output)
        self.encoded += 1
        kept = {name: value for name, value in output.items() if name not in _INTERNAL and _tensors(value)}
        return {name: _on_cpu(value) for name, value in kept.items()}

    @staticmethod
    def batch(looks: Sequence[Looked]) -> dict[str, Any]:
        """What a batch of these prompts carries beside its tokens: `image_features`, and sizes or grids of images."""
        import torch

        beside = {
            name: torch.cat([one.beside[name] for one in looks])
            for name, first in looks[0].beside.items()
            if all(one.beside[name].shape[1:] == first.shape[1:] for one in looks)
        }
        joined = {name: _joined([one.features[name] for one in looks]) for name in looks[0].features}
        return {**beside, "image_features": joined}

    def serve(self) -> None:
        """Makes the model's forward take `image_features`, as `batch` gives them, in place of pixels."""
        forward = self._loaded.model.forward
        # Some models can't be called without naming the pixels.
        needed = [
            name
            for name, parameter in inspect.signature(forward).parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]

        # `generate` reads the signature.
        @functools.wraps(forward)
        def served(*args: Any, image_features: dict[str, Any] | None = None, **kwargs: Any) -> Any:
            if image_features is None:
                return forward(*args, **kwargs)
            kwargs = {**dict.fromkeys(needed), **kwargs}
            return forward(*args, mm_encoder_outputs={"image": self._output_class(**image_features)}, **kwargs)

        self._loaded.model.forward = served


def remember_images(
    trainer: Any, loaded: LoadedModel, batches: "Batches", settings: "AnswerTrainingSettings", counts: dict[str, int]
) -> None:
    """Sets `batches.features` as `settings.image_features` asks, when the language model gets the same of them.

    What trying took is added to `counts` where images go on being encoded as they come. Raises ValueError, with the
    reason, where `always` is asked for and can't be.
    """
    if settings.image_features == "never":
        return
    features = ImageFeatures(loaded, settings.image_features_gb * 1e9)
    reason = _why_not(trainer, loaded, batches, features, settings.batch_size)
    name = type(loaded.model).__name__
    if reason is None:
        batches.features = features
        _LOG.info("%s: an image is encoded once; %g GB are kept at most", name, settings.image_features_gb)
        return
    if settings.image_features == "always":
        raise ValueError(f"image_features always: {name}: {reason}; use auto or never")
    counts["images_encoded"] += features.encoded
    _LOG.info("%s: images are encoded at every sight: %s", name, reason)


def _why_not(
    trainer: Any, loaded: LoadedModel, batches: "Batches", features: ImageFeatures, batch_size: int
) -> str | None:
    """Why a batch's images can't be given encoded; None when they can."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "its weights are spread over processes, and its vision tower can't run by itself"
    if "mm_encoder_outputs" not in inspect.signature(loaded.model.forward).parameters:
        return "it takes no encoded images"

    def batch() -> dict[str, Any]:
        beside = ("labels", "rows")
        given = batches.supervised([{"row": row} for row in range(min(batch_size, len(batches)))])
        return {name: value for name, value in given.items() if name not in beside}

    pixels = batch()
    features.encoded += len(pixels["input_ids"])
    features.serve()
    batches.features = features
    try:
        apart = difference(loaded.model, pixels, batch())
    except Exception as error:  # a model's code raises anything; encoding at every sight remains
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {error}"
    finally:
        batches.features = None
    # The tower's rounding goes by how many images it gets at once; what is wrong is as far as an image from another.
    if not apart <= max(1e-4, 16 * step(loaded)):
        return f"the language model gets something else of encoded images, {apart:.2g} apart"
    return None


def difference(model: Any, one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far apart what the language model would get of two batches is; 0 is equal, 1 as far as it is from nothing.

    Neither batch goes through the language model. Infinite where the two aren't even of one shape.
    """
    import torch

    decoder, _ = language_model_and_tower(model)
    got = [list(_tensors(_given_to(decoder, model, batch))) for batch in (one, other)]
    if [tensor.shape for tensor in got[0]] != [tensor.shape for tensor in got[1]]:
        return float("inf")
    found = 0.0
    for mine, theirs in zip(*got, strict=True):
        if torch.equal(mine, theirs):  # masks of -inf too
            continue
        apart = (mine.double() - theirs.double()).abs().mean() / mine.double().abs().mean().clamp(min=1e-12)
        found = max(found, float(torch.nan_to_num(apart, nan=float("inf"))))
    return found


class _Given(Exception):
    """Carries what a module was called with out of the forward it stops."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__("stopped before the language model")
        self.given = given


def _given_to(decoder: Any, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    import torch
    from accelerate.utils import send_to_device

    def stop(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Given(kwargs)

    # First of all hooks: a forward that is stopped is none, and nobody shall count it.
    hook = decoder.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with torch.no_grad():
            model(**send_to_device(batch, model.device), use_cache=False)
    except _Given as found:
        return found.given
    finally:
        hook.remove()
    raise RuntimeError(f"{type(model).__name__} answered without its language model")


def _tensors(value: Any) -> "list[torch.Tensor]":
    """Every tensor in a value, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for name in sorted(value) for tensor in _tensors(value[name])]
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, list | tuple) else []


def _on_cpu(value: Any) -> Any:
    return [_on_cpu(one) for one in value] if isinstance(value, list | tuple) else value.cpu()


def _joined(values: Sequence[Any]) -> Any:
    """The features of several images: tensors by their first axis; lists are an entry an image, or a list a layer."""
    import torch

    if isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    if isinstance(values[0][0], torch.Tensor):
        return [tensor for value in values for tensor in value]
    return [_joined(layer) for layer in zip(*values, strict=True)]
