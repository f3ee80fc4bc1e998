"""From prompts to what a model takes: its own processor and chat template, rows padded on the left (section 3.2)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.prompt import Prompt
from m3po_dagster.s3_files.path import BucketError

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BatchFeature, PreTrainedModel

    from m3po_dagster.method.generation.model import LoadedModel
    from m3po_dagster.method.generation.vocabulary import Vocabulary


class PromptError(ValueError):
    """A prompt that can't be answered; the message names the prompt, its image file and the reason."""

    def __init__(self, prompt: Prompt, reason: str):
        super().__init__(f"prompt {prompt.prompt_id} (image {prompt.image_path}): {reason}")
        self.prompt_id = prompt.prompt_id
        self.reason = reason


@dataclass(frozen=True)
class Encoded:
    """The readable ones among some prompts.

    `inputs`: the processor's tensors on the CPU, those along the tokens left-padded to a common length; None when no
    prompt is left. `kept`: the indices of its prompts. `errors`: the others' by index.
    """

    inputs: "BatchFeature | None"
    kept: list[int]
    errors: dict[int, PromptError]


def render(loaded: "LoadedModel | Vocabulary", prompt: Prompt) -> str:
    """The conversation as the text that the processor takes, up to where the answer begins.

    By the model's chat template. A processor without one (BLIP-2, InstructBLIP) gets the question as it is, and earlier
    turns before it as "Question: ... Answer: ...", the form its papers use. Raises PromptError when the template
    refuses the conversation or its text names an image placeholder.
    """
    for message in prompt.messages:
        # A second placeholder would take the next prompt's image: every later prompt would see the wrong one.
        for placeholder in loaded.placeholders:
            if placeholder in message.text:
                raise PromptError(
                    prompt,
                    f"the conversation's text has image placeholders ({placeholder}) of its own: take them out of it",
                )
    if not loaded.processor.chat_template:
        return _plain(prompt)
    try:
        return loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    except _faults() as error:
        raise PromptError(prompt, f"the chat template refuses the conversation: {error}") from error


def _plain(prompt: Prompt) -> str:
    if len(prompt.messages) == 1:
        return prompt.question
    begins = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    return " ".join([*(begins[message.role] + message.text for message in prompt.messages), "Answer:"])


def encode(loaded: "LoadedModel", prompts: Sequence[Prompt]) -> Encoded:
    """One call of the processor over all prompts that can be read and leave room for an answer."""
    errors: dict[int, PromptError] = {}
    read = {}
    for i, prompt in enumerate(prompts):
        try:
            read[i] = render(loaded, prompt), _image(prompt)
        except PromptError as error:
            errors[i] = error
    try:
        inputs = process(loaded, *zip(*read.values(), strict=True)) if read else None
    except _faults():
        # One prompt spoils the batch: find it by itself, so that the message names it and the others go on.
        for i in list(read):
            try:
                process(loaded, *zip(read[i], strict=True))
            except _faults() as error:
                del read[i]
                errors[i] = PromptError(prompts[i], f"the processor refuses it: {error}")
        inputs = process(loaded, *zip(*read.values(), strict=True)) if read else None
    unusable = _unusable(loaded, inputs) if read else []
    for i, reason in zip(list(read), unusable, strict=True):
        if reason:
            del read[i]
            errors[i] = PromptError(prompts[i], reason)
    if len(read) < len(unusable):
        inputs = process(loaded, *zip(*read.values(), strict=True)) if read else None
    return Encoded(inputs, list(read), errors)


def process(loaded: "LoadedModel", texts: Sequence[str], images: "Sequence[Image.Image]") -> "BatchFeature":
    """The processor's tensors of texts with an image each, in the precision of the model."""
    bos = loaded.tokenizer.bos_token
    inputs = loaded.processor(
        text=list(texts),
        # An image by itself is, to some processors, a batch of one and, to others, the first prompt's of several.
        images=[[image] for image in images],
        padding=True,
        # A Q-Former reads its text from position 0 whatever its mask says, so the padding comes after.
        padding_side="right",
        return_tensors="pt",
        # A template that writes the begin-of-sequence token itself must not get a second one.
        add_special_tokens=bos is None or not texts[0].startswith(bos),
    )
    # PaliGemma's processor makes labels of its own, for a loss on the question.
    inputs.pop("labels", None)
    if not loaded.is_encoder_decoder:
        _pad_left(inputs, ("input_ids", *grown(loaded.model, inputs)), loaded.tokenizer)
    return inputs.to(dtype=loaded.dtype)


def _pad_left(inputs: "BatchFeature", token_wise: Iterable[str], tokenizer: Any) -> None:
    """Moves the padding, wherever it is in a row, to the left, where decoding continues rows at one place."""
    mask = inputs["attention_mask"].bool()
    # Stable: the tokens of a row keep their order.
    order = mask.int().argsort(dim=1, stable=True)
    for name in token_wise:
        rest = (1,) * (inputs[name].ndim - 2)
        filled = inputs[name].masked_fill(
            ~mask.view(*mask.shape, *rest), tokenizer.pad_token_id if name == "input_ids" else 0
        )
        inputs[name] = filled.gather(1, order.view(*order.shape, *rest).expand_as(filled))


def grown(model: "PreTrainedModel", inputs: "Mapping[str, Any]") -> "dict[str, torch.Tensor]":
    """The inputs that run along the tokens, one generated token longer, and the position ids if there are any.

    The model itself says which they are and how they go on: the mask, token types, which tokens see which image.
    """
    from transformers.utils import ModelOutput

    longer = model._update_model_kwargs_for_generation(ModelOutput(), dict(inputs), is_encoder_decoder=False)
    return {name: value for name, value in longer.items() if value is not None and value is not inputs.get(name)}


def append(model: "PreTrainedModel", inputs: "Mapping[str, Any]", token_ids: Sequence[int]) -> dict[str, Any]:
    """The tensors of one prompt, without padding, as they are after these tokens have been generated."""
    import torch

    last = {name: value[:, -1:] for name, value in grown(model, inputs).items()}
    more = {name: value.repeat_interleave(len(token_ids), dim=1) for name, value in last.items()}
    more["input_ids"] = inputs["input_ids"].new_tensor([token_ids])
    return {name: torch.cat([value, more[name]], dim=1) if name in more else value for name, value in inputs.items()}


def _unusable(loaded: "LoadedModel", inputs: "BatchFeature") -> list[str]:
    """Why each row can't be answered; empty where it can."""
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    reasons = []
    for length, ids in zip(lengths, inputs["input_ids"].tolist(), strict=True):
        if loaded.context is not None and length >= loaded.context:
            reasons.append(f"{length} tokens leave no room for an answer in {loaded.context} positions")
        elif loaded.image_token_id is not None and loaded.image_token_id not in ids:
            reasons.append("the chat template or the processor left no place for the image")
        else:
            reasons.append("")
    return reasons


def _image(prompt: Prompt) -> "Image.Image":
    try:
        return prompt.open_image()
    except BucketError:
        raise
    except _faults() as error:
        raise PromptError(prompt, f"the image can't be decoded: {error}") from error


def _faults() -> tuple[type[Exception], ...]:
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
