"""One training example: a prompt, the sampled token ids of R_w (and R_l), and their log-probs under the base model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from m3po_dagster.method.prompt import Prompt


@dataclass(frozen=True)
class PreferenceExample:
    """A pair (I, Q, R_w, R_l), or (I, Q, R_w) for SFT.

    `chosen_ids` and `rejected_ids` are the token ids as they were sampled, the end of sequence included when the model
    emitted it; they are never decoded and tokenised again. `ref_chosen_logp` and `ref_rejected_logp` are the sums of
    their log-probs under the base model, in nats (section 3.4). `chosen_mas` is MAS(R_w), `mas_gap` MAS(R_w) -
    MAS(R_l), or of what the recipe puts in place of MAS, where they are known. Raises ValueError,
    naming the pair, for an answer without tokens, a log-prob that is not finite, and a rejected answer without its
    log-prob or the reverse.
    """

    pair_id: str
    prompt: Prompt
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...] | None
    ref_chosen_logp: float
    ref_rejected_logp: float | None
    chosen_mas: float | None = None
    mas_gap: float | None = None

    def __post_init__(self) -> None:
        if (self.rejected_ids is None) != (self.ref_rejected_logp is None):
            raise ValueError(
                f"pair {self.pair_id}: rejected_ids and ref_rejected_logp belong together; one of them is missing"
            )
        for name, ids in (("chosen_ids", self.chosen_ids), ("rejected_ids", self.rejected_ids)):
            if ids is not None and not ids:
                raise ValueError(f"pair {self.pair_id}: {name} is empty; an answer needs at least one token")
        for name, logp in (("ref_chosen_logp", self.ref_chosen_logp), ("ref_rejected_logp", self.ref_rejected_logp)):
            if logp is not None and not math.isfinite(logp):
                raise ValueError(f"pair {self.pair_id}: {name} is {logp}; a finite number of nats is needed")


def check_examples(examples: Sequence[PreferenceExample], needs_rejected: bool) -> None:
    """Raises ValueError when `examples` can't be trained on.

    That is: there are none, two carry the same pair_id, or one lacks a rejected answer where `needs_rejected`.
    """
    if not examples:
        raise ValueError("there are no examples to train on: no pair was selected; see the reasons of the dropped ones")
    seen: set[str] = set()
    for example in examples:
        if example.pair_id in seen:
            raise ValueError(f"pair {example.pair_id} is there twice; give every pair once")
        seen.add(example.pair_id)
        if needs_rejected and example.rejected_ids is None:
            raise ValueError(f"pair {example.pair_id} has no rejected answer; train it with kind: sft, or leave it out")
