"""The decode loop: token after token for every row of a batch of prompts, from one prefill (paper, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.paths import SamplingPath
from m3po_dagster.method.generation.prefill import Counts, Prefix
from m3po_dagster.method.generation.rows import ExpandedRows, SharedPrefixRows

if TYPE_CHECKING:
    import torch

    Choose = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Finished rows leave once this share of the batch or less would be left: copying the rest pays off within a few tokens.
COMPACT_AT = 0.75


@dataclass(frozen=True)
class Decoded:
    """What P prompts with W rows each gave: `tokens` and their log-probs (P, W, longest), the others (P, W).

    A row counts up to its length. Log-probs are in nats, float32. `stopped` says that the end of sequence was emitted;
    it is then the row's last token.
    """

    tokens: "torch.Tensor"
    token_logps: "torch.Tensor"
    lengths: "torch.Tensor"
    stopped: "torch.Tensor"


def decode(
    loaded: LoadedModel,
    prefix: Prefix,
    rows: range,
    max_new_tokens: int,
    choose: "Choose",
    counts: Counts | None = None,
    path: SamplingPath | None = None,
) -> Decoded:
    """Decodes some of every prompt's rows until each has ended, has `max_new_tokens`, or the context is full.

    `choose(logits, prompt_of, row_of)` picks the next tokens (P', W') from the raw logits (P', W', vocabulary) of the
    rows in the batch; prompt_of (P',) and row_of (P', W') say which of the P prompts and of their rows they are. The
    recorded log-prob of a token is that of the raw logits, at temperature 1, before anything is suppressed (section
    3.4). `path` is the model's own unless given; the prefix stays as it was.
    """
    import torch

    with torch.inference_mode():
        device, prompts, n = prefix.lengths.device, len(prefix.lengths), len(rows)
        limits = torch.full((prompts,), max_new_tokens, device=device)
        if loaded.context is not None:
            limits = torch.minimum(limits, loaded.context - prefix.lengths)
        result = Decoded(
            tokens=torch.zeros(prompts, n, int(limits.max()), dtype=torch.int32, device=device),
            token_logps=torch.zeros(prompts, n, int(limits.max()), dtype=torch.float32, device=device),
            lengths=torch.zeros(prompts, n, dtype=torch.int64, device=device),
            stopped=torch.zeros(prompts, n, dtype=torch.bool, device=device),
        )
        kind = SharedPrefixRows if (path or loaded.paths.sampling) == "shared-prefix" else ExpandedRows
        batch = kind(prefix, n)
        eos = torch.tensor(loaded.eos, device=device)
        prompt_of = torch.arange(prompts, device=device)
        slot_of = torch.arange(n, device=device).expand(prompts, n)
        active = torch.ones(prompts, n, dtype=torch.bool, device=device)
        logits = prefix.logits[:, None].expand(-1, n, -1)
        for step in range(result.tokens.shape[2]):
            chosen = choose(logits, prompt_of, slot_of + rows.start)
            logp = logits.log_softmax(dim=-1).gather(2, chosen[..., None])[..., 0]
            here = (prompt_of[:, None], slot_of)
            ended = active & torch.isin(chosen, eos)
            result.tokens[:, :, step][here] = torch.where(active, chosen, 0).int()
            result.token_logps[:, :, step][here] = torch.where(active, logp, 0)
            result.lengths[here] += active
            result.stopped[here] |= ended
            active = active & ~ended & (step + 1 < limits[prompt_of])[:, None]
            width = int(active.sum(dim=1).max())
            if width == 0:
                break
            alive = active.any(dim=1)
            if width * int(alive.sum()) <= COMPACT_AT * active.numel():
                kept = alive.nonzero()[:, 0]
                order = active[kept].int().argsort(dim=1, descending=True, stable=True)[:, :width].sort(dim=1).values
                batch.keep(kept, (kept[:, None] * active.shape[1] + order).flatten())
                prompt_of = prompt_of[kept]
                slot_of, chosen, active = (x[kept].gather(1, order) for x in (slot_of, chosen, active))
            logits = batch.step(chosen.reshape(-1, 1)).to(device).view(*chosen.shape, -1)
            if counts is not None:
                counts.decode_forwards += 1
                counts.decode_rows += chosen.numel()
        return Decoded(*(getattr(result, field.name).cpu() for field in fields(Decoded)))
