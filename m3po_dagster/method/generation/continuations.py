"""Log-probs of given answers to a prompt, by each of the scoring paths (paper, section 3.4).

Each function gives a tensor (tokens,) an answer: float32 log-probs in nats, of the raw logits at temperature 1.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.encoding import append
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts, Prefix
from m3po_dagster.method.generation.rows import ExpandedRows

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature


def packed_logps(
    prefix: Prefix, answers: Sequence[Sequence[int]], counts: Counts | None = None
) -> "list[torch.Tensor]":
    """All answers as one row over the prefix of one prompt, in which no answer sees another."""
    # A last token is predicted, never read: it needs no row of its own.
    return _gathered(prefix, answers, packed_next(prefix, [answer[:-1] for answer in answers], counts))


def packed_next(prefix: Prefix, texts: Sequence[Sequence[int]], counts: Counts | None = None) -> "list[torch.Tensor]":
    """Log-probs (tokens, vocabulary) of what follows each token of each text, all texts as one row over the prefix."""
    import torch

    with torch.inference_mode():
        device, length = prefix.logits.device, prefix.attention_mask.shape[1]
        lengths = [len(text) for text in texts]
        packed = [token for text in texts for token in text]
        if not packed:
            return list(prefix.logits.new_empty(0, prefix.logits.shape[1]).split(lengths))
        segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
        offset = torch.cat([torch.arange(length) for length in lengths]).to(device)
        dtype = prefix.cache.layers[0].keys.dtype
        mask = torch.zeros(len(packed), length + len(packed), dtype=dtype, device=device)
        visible = (segment[:, None] == segment) & (offset[:, None] >= offset)
        mask[:, length:].masked_fill_(~visible, torch.finfo(dtype).min)
        output = prefix.language_model(
            input_ids=torch.tensor([packed], device=device),
            position_ids=None if prefix.next_positions is None else prefix.next_positions[..., None] + offset,
            attention_mask=mask[None, None],
            past_key_values=prefix.cache,
            use_cache=True,
        )
        prefix.cache.crop(-len(packed))
        if counts is not None:
            counts.scoring_forwards += 1
            counts.scoring_tokens += len(packed)
        return list(output.logits[0].float().log_softmax(dim=-1).split(lengths))


def expanded_logps(
    prefix: Prefix, answers: Sequence[Sequence[int]], counts: Counts | None = None
) -> "list[torch.Tensor]":
    """A row an answer, padded on the right, each over its own copy of what the model keeps of the one prompt."""
    return _gathered(prefix, answers, expanded_next(prefix, [answer[:-1] for answer in answers], counts))


def expanded_next(prefix: Prefix, texts: Sequence[Sequence[int]], counts: Counts | None = None) -> "list[torch.Tensor]":
    """As `packed_next`, a row a text."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    with torch.inference_mode():
        device = prefix.logits.device
        lengths = [len(text) for text in texts]
        tokens = pad_sequence([torch.tensor(text, dtype=torch.int64) for text in texts], batch_first=True)
        if not tokens.shape[1]:
            return [prefix.logits[:0]] * len(texts)
        own = (torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]).long()
        logits = ExpandedRows(prefix, len(texts)).logits(tokens.to(device), own.to(device))
        if counts is not None:
            counts.scoring_forwards += 1
            counts.scoring_tokens += tokens.numel()
        logps = logits.float().log_softmax(dim=-1)
        return [row[:length] for row, length in zip(logps, lengths, strict=True)]


def full_logps(
    loaded: LoadedModel, inputs: "BatchFeature", answer: Sequence[int], counts: Counts | None = None
) -> "torch.Tensor":
    """Prompt and answer in one forward of the whole model: no cache, no padding. `inputs` are those of one prompt."""
    import torch

    with torch.inference_mode():
        tokens = inputs["input_ids"].new_tensor(answer)
        if loaded.is_encoder_decoder:
            start = inputs["input_ids"].new_tensor([_decoder_start(loaded)])
            inputs = {**inputs, "decoder_input_ids": torch.cat([start, tokens[:-1]])[None]}
            scored = len(tokens)
        else:
            inputs = append(loaded.model, inputs, answer[:-1])
            scored = inputs["input_ids"].shape[1]
        if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters:
            inputs["logits_to_keep"] = len(tokens)
        logits = loaded.model(**inputs, use_cache=False).logits[0, -len(tokens) :].float()
        if counts is not None:
            counts.images_encoded += 1
            counts.scoring_forwards += 1
            counts.scoring_tokens += scored
        return logits.log_softmax(dim=-1).gather(1, tokens[:, None].to(logits.device))[:, 0]


def _gathered(
    prefix: Prefix, answers: Sequence[Sequence[int]], rests: "Sequence[torch.Tensor]"
) -> "list[torch.Tensor]":
    """The answers' log-probs out of those of every token after each of theirs, (tokens - 1, vocabulary) an answer."""
    import torch

    first = prefix.logits.log_softmax(dim=-1)
    found = []
    for answer, rest in zip(answers, rests, strict=True):
        tokens = torch.tensor(answer, dtype=torch.int64, device=first.device)[:, None]
        found.append(torch.cat([first, rest.to(first.device)]).gather(1, tokens)[:, 0])
    return found


def _decoder_start(loaded: LoadedModel) -> int:
    config = loaded.model.config.get_text_config()
    found = loaded.model.generation_config.decoder_start_token_id
    return config.decoder_start_token_id if found is None else found
