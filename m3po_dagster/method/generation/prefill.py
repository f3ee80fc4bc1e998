"""From prompts to what sampling and scoring start from: image encoded once, prompt read once by the language model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, DynamicCache


@dataclass
class Counts:
    """What the model, or the server of it, was asked to do; tests and metadata read it."""

    images_encoded: int = 0
    prefill_forwards: int = 0
    prefill_tokens: int = 0
    decode_forwards: int = 0
    decode_rows: int = 0
    scoring_forwards: int = 0
    scoring_tokens: int = 0
    requests: int = 0
    choices_asked_again: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class PromptError(ValueError):
    """A prompt that can't be answered; the message names the prompt, its image file and the reason."""

    def __init__(self, prompt: Prompt, reason: str):
        super().__init__(f"prompt {prompt.prompt_id} (image {prompt.image_path}): {reason}")
        self.prompt_id = prompt.prompt_id
        self.reason = reason


@dataclass(frozen=True)
class Prefix:
    """P prompts as the language model has read them, left-padded to a common length L.

    `cache`: keys and values, a layer (P, key-value heads, L, head dim). `logits` (P, vocabulary): float32, of the first
    token after each prompt. `attention_mask` (P, L): 1 on a prompt's own tokens, `lengths` (P,) their number.
    """

    cache: "DynamicCache"
    logits: "torch.Tensor"
    attention_mask: "torch.Tensor"
    lengths: "torch.Tensor"


def prefill(
    loaded: LoadedModel, prompts: Sequence[Prompt], counts: Counts | None = None
) -> tuple[Prefix | None, list[int], dict[int, PromptError]]:
    """One forward over all prompts that can be read.

    Returns the prefix (None when no prompt is left), the indices of its prompts in `prompts`, and the errors of the
    others by index. Prompts on the same file share one encoding of it, where the model takes encoded images.
    """
    import torch

    inputs, kept, errors = _encode(loaded, prompts)
    if inputs is None:
        return None, kept, errors
    inputs = inputs.to(loaded.device, dtype=loaded.model.dtype)
    mask = inputs.pop("attention_mask")
    with torch.inference_mode():
        images_encoded = _share_images(loaded, inputs, [prompts[i] for i in kept])
        output = loaded.model(
            **inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
    cache = output.past_key_values
    if any(cache.is_sliding):
        raise ValueError(
            f"{type(loaded.model).__name__} keeps only a window of the sequence in some layers, which candidates can't "
            "share: use a model with full attention in every layer"
        )
    if counts is not None:
        counts.images_encoded += images_encoded
        counts.prefill_forwards += 1
        counts.prefill_tokens += int(mask.sum())
    return Prefix(cache, output.logits[:, -1].float(), mask, mask.sum(dim=1)), kept, errors


def _encode(
    loaded: LoadedModel, prompts: Sequence[Prompt]
) -> "tuple[BatchFeature | None, list[int], dict[int, PromptError]]":
    """Processor output of the readable prompts, their indices, and the errors of the rest by index."""
    errors: dict[int, PromptError] = {}
    read = {}
    for i, prompt in enumerate(prompts):
        try:
            read[i] = _read(loaded, prompt)
        except PromptError as error:
            errors[i] = error
    if not read:
        return None, [], errors
    try:
        inputs = _process(loaded, list(read.values()))
    except _prompt_faults():
        # One prompt spoils the batch: find it by itself, so that the message names it and the others go on.
        for i in list(read):
            try:
                _process(loaded, [read[i]])
            except _prompt_faults() as error:
                del read[i]
                errors[i] = PromptError(prompts[i], f"the processor refuses it: {error}")
        if not read:
            return None, [], errors
        inputs = _process(loaded, list(read.values()))
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    for i, length in zip(list(read), lengths, strict=True):
        if loaded.context is not None and length >= loaded.context:
            del read[i]
            errors[i] = PromptError(
                prompts[i], f"{length} tokens leave no room for an answer in {loaded.context} positions"
            )
    if len(read) < len(lengths):
        inputs = _process(loaded, list(read.values())) if read else None
    return inputs, list(read), errors


def _prompt_faults() -> tuple[type[Exception], ...]:
    """What image decoding, chat templates and processors raise when the fault is the prompt's."""
    from jinja2 import TemplateError
    from PIL import Image

    return (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        IndexError,
        RuntimeError,
        Image.DecompressionBombError,
        TemplateError,
    )


def _read(loaded: LoadedModel, prompt: Prompt) -> tuple[str, object]:
    """The rendered conversation and the decoded image; raises PromptError."""
    try:
        image = prompt.open_image()
    except _prompt_faults() as error:
        raise PromptError(prompt, f"the image can't be decoded: {error}") from error
    try:
        text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    except _prompt_faults() as error:
        raise PromptError(prompt, f"the chat template refuses the conversation: {error}") from error
    # A second placeholder would take the next prompt's image: every later prompt of the batch would see the wrong one.
    placeholders = text.count(loaded.processor.image_token)
    if placeholders != 1:
        raise PromptError(
            prompt,
            f"the conversation has {placeholders} image placeholders ({loaded.processor.image_token}) instead of one: "
            "take them out of its text",
        )
    return text, image


def _process(loaded: LoadedModel, read: list[tuple[str, object]]) -> "BatchFeature":
    texts, images = zip(*read, strict=True)
    bos = loaded.tokenizer.bos_token
    return loaded.processor(
        text=list(texts),
        images=list(images),
        padding=True,
        padding_side="left",
        return_tensors="pt",
        # A template that writes the begin-of-sequence token itself must not get a second one.
        add_special_tokens=bos is None or not texts[0].startswith(bos),
    )


def _share_images(loaded: LoadedModel, inputs: "BatchFeature", prompts: list[Prompt]) -> int:
    """Encodes each image file once and hands the model the features, repeated; returns the number of images encoded.

    Leaves `inputs` alone, so that the model encodes one image a prompt, when all files differ or it takes no features.
    """
    import inspect

    files = list(dict.fromkeys(prompt.image_path for prompt in prompts))
    pixels = inputs.get("pixel_values")
    takes_features = "mm_encoder_outputs" in inspect.signature(loaded.model.forward).parameters
    if len(files) == len(prompts) or not takes_features or pixels is None or len(pixels) != len(prompts):
        return len(prompts)
    position = [files.index(prompt.image_path) for prompt in prompts]
    first = [position.index(i) for i in range(len(files))]
    encoded = loaded.model.get_image_features(pixel_values=pixels[first], return_dict=True)
    encoded.pooler_output = [encoded.pooler_output[i] for i in position]
    del inputs["pixel_values"]
    inputs["mm_encoder_outputs"] = {"image": encoded}
    return len(files)
