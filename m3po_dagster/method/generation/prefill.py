"""From prompts to what sampling and scoring start from: image encoded once, prompt read once by the language model."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.encoding import PromptError, encode, grown
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, Cache, PreTrainedModel


@dataclass
class Counts:
    """What the model, or the server of it, was asked to do; tests and metadata read it.

    `halvings`: batches that did not fit in memory. `choices_asked_again`: of a server, missing or not usable.
    """

    images_encoded: int = 0
    prefill_forwards: int = 0
    prefill_tokens: int = 0
    decode_forwards: int = 0
    decode_rows: int = 0
    scoring_forwards: int = 0
    scoring_tokens: int = 0
    halvings: int = 0
    requests: int = 0
    choices_asked_again: int = 0


@dataclass(frozen=True)
class Prefix:
    """P prompts as the language model has read them, left-padded to a common length L.

    `language_model` is the part that reads token ids and gives logits, the image aside. `cache` is what it keeps of the
    prompts; in full attention, a layer's keys and values (P, key-value heads, L, head dim). `logits` (P, vocabulary):
    float32, of the first token after each prompt. `attention_mask` (P, L): 1 on a prompt's own tokens, `lengths` (P,)
    their number. `next_positions` (P,), or (axes, P) where positions have axes: of that first token; None for a
    language model that is told none. `token_wise`: what `language_model` was told besides, token by token.
    """

    language_model: "PreTrainedModel"
    cache: "Cache"
    logits: "torch.Tensor"
    attention_mask: "torch.Tensor"
    lengths: "torch.Tensor"
    next_positions: "torch.Tensor | None"
    token_wise: "dict[str, torch.Tensor]"

    def keep(self, prompts: Sequence[int]) -> "Prefix":
        """The prefix of these prompts alone; what is kept of the others is freed, this one can't be used any more."""
        import torch

        kept = torch.tensor(prompts, device=self.lengths.device)
        with torch.inference_mode():
            self.cache.reorder_cache(kept)
            return Prefix(
                language_model=self.language_model,
                cache=self.cache,
                logits=self.logits[kept],
                attention_mask=self.attention_mask[kept],
                lengths=self.lengths[kept],
                next_positions=None if self.next_positions is None else self.next_positions[..., kept],
                token_wise=of_rows(self.token_wise, kept),
            )


def of_rows(token_wise: "dict[str, torch.Tensor]", rows: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """These rows of what a model was told token by token."""
    # Positions in several axes have these before the rows.
    return {
        name: value[:, rows] if name == "position_ids" and value.ndim == 3 else value[rows]
        for name, value in token_wise.items()
    }


def prefill(
    loaded: LoadedModel, prompts: Sequence[Prompt], counts: Counts | None = None
) -> tuple[Prefix | None, list[int], dict[int, PromptError]]:
    """One forward over all prompts that can be read.

    Returns the prefix (None when no prompt is left), the indices of its prompts in `prompts`, and the errors of the
    others by index. Prompts on the same file share one encoding of it, where the model takes encoded images.
    """
    import torch

    encoded = encode(loaded, prompts)
    if encoded.inputs is None:
        return None, encoded.kept, encoded.errors
    inputs = encoded.inputs.to(loaded.device)
    with torch.inference_mode():
        images_encoded = _share_images(loaded, inputs, [prompts[i] for i in encoded.kept])
    prefix = read(loaded, inputs)
    if counts is not None:
        counts.images_encoded += images_encoded
        counts.prefill_forwards += 1
        counts.prefill_tokens += int(prefix.lengths.sum())
    return prefix, encoded.kept, encoded.errors


def read(loaded: LoadedModel, inputs: "BatchFeature") -> Prefix:
    """One forward over processor output that lies on the model's device.

    The model's own `generate` prepares it (encoded images, positions in one axis or three, token types, the kind of
    cache), so that what a family needs is what transformers gives it. In BLIP-2's classes it hands over to the language
    model inside.
    """
    import torch

    found = []

    def first_forward(
        model: Any, input_ids: "torch.Tensor", *, generation_config: Any, **kwargs: Any
    ) -> "torch.Tensor":
        for name in ("logits_processor", "stopping_criteria", "synced_gpus", "streamer", "assistant_model"):
            kwargs.pop(name, None)
        first = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        # What the model keeps of the images changes no later token; what runs along the tokens goes on with them.
        token_wise = {name: kwargs[name] for name in grown(model, kwargs) if kwargs.get(name) is not None}
        output = model(**first, return_dict=True)
        positions = first.get("position_ids")
        mask = inputs["attention_mask"]
        found.append(
            Prefix(
                language_model=model,
                cache=output.past_key_values,
                logits=output.logits[:, -1].float().to(mask.device),
                attention_mask=mask,
                lengths=mask.sum(dim=1),
                # A prompt ends with text, whose axes all count on by one.
                next_positions=None if positions is None else positions[..., -1] + 1,
                token_wise=token_wise,
            )
        )
        return input_ids

    with torch.inference_mode():
        loaded.model.generate(
            **inputs,
            custom_generate=first_forward,
            max_new_tokens=1,
            do_sample=True,
            use_cache=True,
        )
    return found[0]


def _share_images(loaded: LoadedModel, inputs: "BatchFeature", prompts: list[Prompt]) -> int:
    """Encodes each image file once and hands the model the features, repeated; returns the number of images encoded.

    Leaves `inputs` alone, so that the model encodes one image a prompt, when all files differ, when images are more
    than one tensor each (tiles, sizes, the question for a Q-Former), or when the model takes no features.
    """
    from transformers import GenerationMixin

    files = list(dict.fromkeys(prompt.image_path for prompt in prompts))
    pixels = inputs.get("pixel_values")
    model = loaded.model
    if (
        len(files) == len(prompts)
        or pixels is None
        or pixels.shape[0] != len(prompts)
        or pixels.ndim != 4
        or set(inputs) - {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
        or "mm_encoder_outputs" not in inspect.signature(model.forward).parameters
        or type(model).generate is not GenerationMixin.generate
    ):
        return len(prompts)
    position = [files.index(prompt.image_path) for prompt in prompts]
    first = [position.index(i) for i in range(len(files))]
    encoded = model.get_image_features(pixel_values=pixels[first], return_dict=True)
    features = encoded.pooler_output
    encoded.pooler_output = (
        [features[i] for i in position] if isinstance(features, list | tuple) else features[position]
    )
    del inputs["pixel_values"]
    inputs["mm_encoder_outputs"] = {"image": encoded}
    return len(files)
