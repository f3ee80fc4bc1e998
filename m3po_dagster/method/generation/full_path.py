"""The slow path that is right for any model: transformers' own loop, the prompt read once a row (section 3.2)."""

from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.decode import Decoded
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature

    from m3po_dagster.method.generation.decode import Choose


def generate(
    loaded: LoadedModel,
    inputs: "BatchFeature",
    rows: range,
    max_new_tokens: int,
    choose: "Choose",
    counts: Counts | None = None,
) -> Decoded:
    """What `decode` gives, for these rows of one prompt, from the processor's output on it.

    `generate` prepares and repeats the inputs and runs its loop; `choose` sits in it as the one logits processor, so
    that the samples are those of any other path. Log-probs are gathered step by step; no step's logits are kept.
    """
    import torch
    from transformers import LogitsProcessorList

    length = int(inputs["attention_mask"].sum())
    if loaded.context is not None and not loaded.is_encoder_decoder:
        max_new_tokens = min(max_new_tokens, loaded.context - length)
    recorder = _Recorder(loaded.eos, rows, choose)

    def loop(model: Any, input_ids: "torch.Tensor", *, logits_processor: Any, **kwargs: Any) -> "torch.Tensor":
        return model._sample(input_ids, logits_processor=LogitsProcessorList([recorder]), **kwargs)

    with torch.inference_mode(), torch.random.fork_rng():
        loaded.model.generate(
            **inputs,
            custom_generate=loop,
            num_return_sequences=len(rows),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            use_cache=True,
        )
    if counts is not None:
        counts.images_encoded += 1
        counts.prefill_forwards += 1
        # An encoder reads the prompt once for all rows.
        counts.prefill_tokens += length if loaded.is_encoder_decoder else length * len(rows)
        counts.decode_forwards += len(recorder.tokens) - 1
        counts.decode_rows += (len(recorder.tokens) - 1) * len(rows)
    return recorder.decoded()


class _Recorder:
    """A logits processor that lets `choose` pick the tokens, leaves nothing else to draw, and notes their log-probs."""

    def __init__(self, eos: tuple[int, ...], rows: range, choose: "Choose"):
        self.eos, self.rows, self.choose = eos, rows, choose
        self.tokens: list[torch.Tensor] = []
        self.logps: list[torch.Tensor] = []

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """(W, vocabulary) raw logits -> 0 on the token chosen for each row, -inf on the others."""
        import torch

        prompt_of = torch.zeros(1, dtype=torch.int64, device=scores.device)
        row_of = torch.arange(self.rows.start, self.rows.stop, device=scores.device)[None]
        chosen = self.choose(scores[None], prompt_of, row_of)[0]
        self.tokens.append(chosen)
        self.logps.append(scores.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0)

    def decoded(self) -> Decoded:
        """One prompt's rows; what was chosen for a row after its end doesn't count."""
        import torch

        tokens, logps = (torch.stack(steps, dim=1)[None].cpu() for steps in (self.tokens, self.logps))
        ends = torch.isin(tokens, torch.tensor(self.eos))
        stopped = ends.any(dim=2)
        lengths = torch.where(stopped, ends.int().argmax(dim=2) + 1, tokens.shape[2])
        return Decoded(tokens, logps, lengths, stopped)
