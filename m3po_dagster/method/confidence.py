"""Log-probs of given answers under the model: the confidence log P(R | I, Q) of section 3.4.

Sampling records them already; this is for answers that came from elsewhere, or under other numerics. The prompt is read
once, and a group of answers goes through the model as one row in which no answer sees another; a model that can't do
that takes a slower path (`LoadedModel.paths`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.continuations import expanded_logps, full_logps, packed_logps
from m3po_dagster.method.generation.encoding import encode
from m3po_dagster.method.generation.memory import fitting, too_little
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts, prefill
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
    one forward, or fewer where memory does not suffice: it changes speed, not results. Raises PromptError when the
    prompt can't be read, ValueError for a continuation without tokens, MemoryError when one alone does not fit.
    """
    for i, continuation in enumerate(continuations):
        if len(continuation) == 0:
            raise ValueError(f"prompt {prompt.prompt_id}: continuation {i} has no tokens, so it has no log-prob")
    scores: list[torch.Tensor] = []
    while len(scores) < len(continuations):
        at_once = min(loaded.limits.answers or group, group)

        def score_rest(at_once: int = at_once) -> bool:
            for scored in _scores(loaded, prompt, continuations[len(scores) :], at_once, counts):
                scores.extend(scored)
            return True

        if not fitting(score_rest):
            if not loaded.limits.halve_scoring(at_once):
                raise too_little(f"prompt {prompt.prompt_id}: scoring one answer", loaded.device.type)
            if counts is not None:
                counts.halvings += 1
    return [
        Confidence(tuple(logps.tolist()), ended=continuation[-1] in loaded.eos)
        for continuation, logps in zip(continuations, scores, strict=True)
    ]


def _scores(
    loaded: LoadedModel, prompt: Prompt, continuations: Sequence[Sequence[int]], at_once: int, counts: Counts | None
) -> "Iterator[list[torch.Tensor]]":
    """The log-probs (tokens,) of each continuation, `at_once` at a time, by the model's own path."""
    if loaded.paths.scoring == "full-forward":
        encoded = encode(loaded, [prompt])
        if encoded.inputs is None:
            raise encoded.errors[0]
        inputs = encoded.inputs.to(loaded.device)
        yield from ([full_logps(loaded, inputs, continuation, counts)] for continuation in continuations)
        return
    prefix, _, errors = prefill(loaded, [prompt], counts)
    if prefix is None:
        raise errors[0]
    score = packed_logps if loaded.paths.scoring == "packed" else expanded_logps
    for start in range(0, len(continuations), at_once):
        yield score(prefix, continuations[start : start + at_once], counts)
