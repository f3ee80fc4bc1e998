"""Log-probs of given answers under the model: the confidence log P(R | I, Q) of section 3.4.

Sampling records them already; this is for answers that came from elsewhere, or under other numerics. The prompt is read
once, and a group of answers goes through the model as one row in which no answer sees another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts, Prefix, prefill
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Confidence:
    """log P(R | I, Q) token by token, in nats at temperature 1; `ended` says that the last is the end of sequence."""

    token_logps: tuple[float, ...]
    ended: bool

    @property
    def sum_logp(self) -> float:
        """The tokens' log-probs together."""
        return math.fsum(self.token_logps)

    @property
    def eos_logp(self) -> float | None:
        """The end of sequence's share of it; None when the answer was cut."""
        return self.token_logps[-1] if self.ended else None


def score_continuations(
    loaded: LoadedModel,
    prompt: Prompt,
    continuations: Sequence[Sequence[int]],
    group: int = 8,
    counts: Counts | None = None,
) -> list[Confidence]:
    """The confidence of each continuation, in order.

    A continuation is the token ids that were sampled, end of sequence included when emitted. `group` continuations make
    one forward: it changes speed, not results. Raises PromptError when the prompt can't be read, ValueError for a
    continuation without tokens.
    """
    for i, continuation in enumerate(continuations):
        if len(continuation) == 0:
            raise ValueError(f"prompt {prompt.prompt_id}: continuation {i} has no tokens, so it has no log-prob")
    prefix, _, errors = prefill(loaded, [prompt], counts)
    if prefix is None:
        raise errors[0]
    scores = []
    for start in range(0, len(continuations), group):
        scores += _score_group(loaded, prefix, continuations[start : start + group], counts)
    return scores


def _score_group(
    loaded: LoadedModel, prefix: Prefix, continuations: Sequence[Sequence[int]], counts: Counts | None
) -> list[Confidence]:
    import torch

    with torch.inference_mode():
        # A last token is predicted, never read: it needs no row of its own.
        lengths = [len(continuation) - 1 for continuation in continuations]
        packed = [token for continuation in continuations for token in continuation[:-1]]
        first = prefix.logits[0].log_softmax(dim=-1)
        rest = _packed_logp(loaded, prefix, packed, lengths) if packed else first.new_empty(0, len(first))
        if counts is not None and packed:
            counts.scoring_forwards += 1
            counts.scoring_tokens += len(packed)
        scores = []
        for continuation, rows in zip(continuations, rest.split(lengths), strict=True):
            rows = torch.cat([first[None], rows])
            tokens = torch.tensor(continuation, dtype=torch.int64, device=loaded.device)
            logps = rows.gather(1, tokens[:, None])[:, 0].tolist()
            scores.append(Confidence(tuple(logps), ended=continuation[-1] in loaded.eos))
        return scores


def _packed_logp(loaded: LoadedModel, prefix: Prefix, packed: list[int], lengths: list[int]) -> "torch.Tensor":
    """(tokens, vocabulary) log-probs of what follows each packed token; leaves the prefix cache as it was."""
    import torch

    device, prompt_length = loaded.device, int(prefix.lengths[0])
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    offset = torch.cat([torch.arange(length) for length in lengths]).to(device)
    visible = (segment[:, None] == segment) & (offset[:, None] >= offset)
    dtype = loaded.model.dtype
    mask = torch.zeros(len(packed), prompt_length + len(packed), dtype=dtype, device=device)
    mask[:, prompt_length:].masked_fill_(~visible, torch.finfo(dtype).min)
    output = loaded.model(
        input_ids=torch.tensor([packed], device=device),
        position_ids=(prompt_length + offset)[None],
        attention_mask=mask[None, None],
        past_key_values=prefix.cache,
        use_cache=True,
    )
    prefix.cache.crop(-len(packed))
    return output.logits[0].float().log_softmax(dim=-1)
