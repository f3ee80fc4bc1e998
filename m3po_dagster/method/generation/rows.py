"""W rows of each of P prompts that continue one prefill: how they keep what they have seen, and take a step.

Rows are ordered prompt by prompt: row p * W + w.
"""

import copy
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.encoding import grown
from m3po_dagster.method.generation.prefill import Prefix, of_rows
from m3po_dagster.method.generation.shared_prefix import SharedPrefixCache

if TYPE_CHECKING:
    import torch


class SharedPrefixRows:
    """Rows that attend to one copy of their prompt's keys and values, and keep their own tokens apart."""

    def __init__(self, prefix: Prefix, width: int):
        self._model = prefix.language_model
        self._cache = SharedPrefixCache([(layer.keys, layer.values) for layer in prefix.cache.layers], _bias(prefix))
        positions = prefix.next_positions
        self._positions = None if positions is None else positions.repeat_interleave(width, dim=-1)[..., None]

    def keep(self, prompts: "torch.Tensor", rows: "torch.Tensor") -> None:
        """Keeps these prompts (P',) and these rows (P' * W',), in this order."""
        self._cache.keep(prompts, rows)
        if self._positions is not None:
            self._positions = self._positions[..., rows, :]

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """The logits (rows, vocabulary), float32, after one token a row (rows, 1)."""
        output = self._model(
            input_ids=tokens,
            position_ids=self._positions,
            attention_mask=self._cache.bias,
            past_key_values=self._cache,
            shared_prefix=self._cache,
            use_cache=True,
        )
        if self._positions is not None:
            self._positions = self._positions + 1
        return output.logits[:, -1].float()


class ExpandedRows:
    """Rows that each have a copy of what the model keeps of their prompt: keys and values, a window of them, states."""

    def __init__(self, prefix: Prefix, width: int):
        import torch

        self._model = prefix.language_model
        self._cache = copy.deepcopy(prefix.cache)
        self._told = prefix.token_wise
        rows = torch.arange(len(prefix.lengths), device=prefix.lengths.device).repeat_interleave(width)
        self.keep(rows, rows)

    def keep(self, prompts: "torch.Tensor", rows: "torch.Tensor") -> None:
        """Keeps these rows, in this order; `prompts` follows from them."""
        self._cache.reorder_cache(rows)
        self._told = of_rows(self._told, rows)

    def step(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """As `SharedPrefixRows.step`."""
        return self.logits(tokens)[:, -1].float()

    def logits(self, tokens: "torch.Tensor", own: "torch.Tensor | None" = None) -> "torch.Tensor":
        """The logits (rows, tokens, vocabulary) after tokens (rows, tokens); `own` is 0 on padding at their right."""
        import torch

        for _ in range(tokens.shape[1]):
            self._told = {**self._told, **grown(self._model, self._told)}
        if own is not None:
            seen = self._told.get("attention_mask")
            if seen is None:
                seen = torch.ones(len(tokens), self._cache.get_seq_length() + tokens.shape[1], dtype=own.dtype)
            self._told["attention_mask"] = torch.cat([seen[:, : -tokens.shape[1]].to(own), own], dim=1)
        inputs = self._model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=tokens.shape[1],
            past_key_values=self._cache,
            use_cache=True,
            **self._told,
        )
        return self._model(**inputs, return_dict=True).logits


def _bias(prefix: Prefix) -> "torch.Tensor":
    """(P, 1, 1, L): 0 on tokens, the lowest number of the keys' dtype on padding."""
    import torch

    dtype = prefix.cache.layers[0].keys.dtype
    bias = torch.zeros(prefix.attention_mask.shape, dtype=dtype, device=prefix.attention_mask.device)
    return bias.masked_fill_(prefix.attention_mask == 0, torch.finfo(dtype).min)[:, None, None]
