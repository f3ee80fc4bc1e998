"""Log-probs of what comes next after each of several questions about one image (sections 3.3 and 3.4).

The image and the words that all questions begin with are read once, and the rest of each question goes over that as a
given answer does. A model that can't take a question in two parts (it reads the question in both directions, or looks
at the image with the question in mind) is asked question by question; trying shows which is right.
"""

import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.continuations import expanded_next, full_logps, packed_next
from m3po_dagster.method.generation.encoding import PromptError, encode, grown, process, render
from m3po_dagster.method.generation.memory import fitting, out_of_memory, too_little
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts, read
from m3po_dagster.method.generation.self_check import FLOOR, STEPS, TIMES, step
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BatchFeature

Answer = tuple[float, ...] | PromptError
"""The log-probs of the tokens asked for, in nats; or why the question can't be put to the model."""

_LOG = logging.getLogger(__name__)


def next_token_logps(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    token_ids: Sequence[int],
    together: bool,
    group: int = 8,
    counts: Counts | None = None,
) -> list[Answer]:
    """The log-probs of `token_ids` as the next token after each prompt, in order; all prompts look at one image.

    `together` says that `can_share` found the questions to be divisible; `group` of them then make one forward, or
    fewer where memory does not suffice. Raises MemoryError when one alone does not fit.
    """
    if not together:
        return [_alone(loaded, prompt, token_ids, counts) for prompt in prompts]
    found: dict[int, Answer] = {}
    texts: dict[int, str] = {}
    for i, prompt in enumerate(prompts):
        try:
            texts[i] = render(loaded, prompt)
        except PromptError as error:
            found[i] = error
    # The shortest stands for all: where it has no room, no other has.
    order = sorted(texts, key=lambda i: len(texts[i]))
    if order:
        first = encode(loaded, [prompts[order[0]]])
        tails = None if first.inputs is None else _parted(loaded, [texts[i] for i in order], first.inputs)
        if tails is None:
            return [found.get(i) or _alone(loaded, prompt, token_ids, counts) for i, prompt in enumerate(prompts)]
        length = first.inputs["input_ids"].shape[1] - len(tails[0])
        long = {i for i, tail in zip(order, tails, strict=True) if length + len(tail) >= (loaded.context or 1 << 60)}
        found |= {i: PromptError(prompts[i], "no room for an answer in the model's context") for i in long}
        kept = {i: tail for i, tail in zip(order, tails, strict=True) if i not in long}
        after = _after(loaded, first.inputs, length, list(kept.values()), group, counts)
        found |= {i: tuple(logps[list(token_ids)].tolist()) for i, logps in zip(kept, after, strict=True)}
    return [found[i] for i in range(len(prompts))]


def can_share(loaded: LoadedModel, texts: Sequence[str], image: "Image.Image") -> bool:
    """Whether rendered questions about an image give, read together, what plain forwards of each give.

    As nearly as two right ways give it; a few forwards. The log says why not.
    """
    import torch

    def apart(reason: object) -> bool:
        _LOG.warning("%s reads questions about an image one by one: %s", type(loaded.model).__name__, reason)
        return False

    if loaded.paths.scoring == "full-forward":
        return apart("it scores answers one by one")
    try:
        alone = [process(loaded, [text], [image]).to(loaded.device) for text in texts]
        tails = _parted(loaded, texts, alone[0])
        if tails is None:
            return apart("the image is not among what they begin with")
        length = alone[0]["input_ids"].shape[1] - len(tails[0])
        together = torch.stack(_after(loaded, alone[0], length, tails, len(tails), None)).cpu()
        looped = torch.stack([read(loaded, inputs).logits[0].log_softmax(dim=-1) for inputs in alone]).cpu()
        likeliest = looped.topk(4, dim=-1).indices
        plain = [
            [full_logps(loaded, inputs, [token])[0] for token in tokens]
            for inputs, tokens in zip(alone, likeliest.tolist(), strict=True)
        ]
    except Exception as error:  # a model's and a processor's code raise anything; questions apart remain
        if out_of_memory(error):
            raise
        return apart(error)
    expected = torch.tensor(plain)
    rounding = float((looped.gather(1, likeliest) - expected).abs().mean())
    difference = float((together.gather(1, likeliest) - expected).abs().mean())
    if not difference <= max(FLOOR, STEPS * step(loaded), TIMES * rounding):
        return apart(f"together they differ by {difference:.2g} nat from plain forwards")
    return True


def _alone(loaded: LoadedModel, prompt: Prompt, token_ids: Sequence[int], counts: Counts | None) -> Answer:
    try:
        scored = score_continuations(loaded, prompt, [[token] for token in token_ids], counts=counts)
    except PromptError as error:
        return error
    return tuple(one.sum_logp for one in scored)


def _parted(loaded: LoadedModel, texts: Sequence[str], inputs: "BatchFeature") -> list[list[int]] | None:
    """The tokens of each text after those that all begin with, at least one each; `inputs` are the first text's.

    None when the image is not among what they begin with.
    """
    bos = loaded.tokenizer.bos_token
    add_special_tokens = bos is None or not texts[0].startswith(bos)
    tokens = loaded.tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
    shortest = min(len(one) for one in tokens) - 1
    common = len(list(takewhile(lambda i: len({one[i] for one in tokens}) == 1, range(shortest))))
    tails = [one[common:] for one in tokens]
    image_in_common = all(loaded.image_token_id not in tail for tail in tails)
    read_alike = inputs["input_ids"][0, -len(tails[0]) :].tolist() == tails[0]
    return tails if image_in_common and read_alike else None


def _after(
    loaded: LoadedModel,
    inputs: "BatchFeature",
    length: int,
    tails: Sequence[Sequence[int]],
    group: int,
    counts: Counts | None,
) -> "list[torch.Tensor]":
    """The log-probs (vocabulary,) of what follows each tail over the first `length` tokens of one prompt's inputs."""
    from transformers import BatchFeature

    along = {"input_ids", *grown(loaded.model, inputs)}
    begun = {name: value[:, :length] if name in along else value for name, value in inputs.items()}
    prefix = read(loaded, BatchFeature(begun).to(loaded.device))
    if counts is not None:
        counts.images_encoded += 1
        counts.prefill_forwards += 1
        counts.prefill_tokens += length
    following = packed_next if loaded.paths.scoring == "packed" else expanded_next
    found: dict[int, torch.Tensor] = {}
    order = sorted(range(len(tails)), key=lambda i: len(tails[i]))
    while rest := order[len(found) :]:
        some = rest[: min(loaded.limits.answers or group, group)]
        logps = fitting(lambda some=some: [one[-1] for one in following(prefix, [tails[i] for i in some], counts)])
        if logps is not None:
            found |= zip(some, logps, strict=True)
        elif not loaded.limits.halve_scoring(len(some)):
            raise too_little("one question", loaded.device.type)
    return [found[i] for i in range(len(tails))]
