"""W rows of each of P prompts that continue one prefill: how they keep what they have seen, and take a step.

Rows are ordered prompt by prompt: row p * W + w.
"""

import copy
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.prefill import Prefix
from m3po_dagster.method.generation.shared_prefix import SharedPrefixCache

if TYPE_CHECKING:
    import torch


class SharedPrefixRows:
    """Rows that attend to one copy of their prompt's keys and values, and keep their own tokens apart."""

    def __init__(self, prefix: Prefix, width: int):
        self._model = prefix.language_model
        self._cache = SharedPrefixCache([(layer.keys, layer.values) for layer in prefix.cache.layers], _bias(prefix))

    def keep(self, prompts: "torch.Tensor", rows: "torch.Tensor") -> None:
        """Keeps these prompts (P',) and these rows (P' * W',), in this order."""
        self._cache.keep(prompts, rows)

    def step(self, tokens: "torch.Tensor", positions: "torch.Tensor | None") -> "torch.Tensor":
        """The logits (rows, vocabulary), float32, after one token a row (rows, 1), at positions ([axes,] rows, 1)."""
        output = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self._cache.bias,
            past_key_values=self._cache,
            shared_prefix=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1].float()


class ExpandedRows:
    """Rows that each have a copy of what the model keeps of their prompt: keys and values, a window of them, states."""

    def __init__(self, prefix: Prefix, width: int):
        import torch

        self._model = prefix.language_model
        rows = torch.arange(len(prefix.lengths), device=prefix.lengths.device).repeat_interleave(width)
        self._cache = copy.deepcopy(prefix.cache)
        self._cache.reorder_cache(rows)
        self._mask = prefix.attention_mask[rows]

    def keep(self, prompts: "torch.Tensor", rows: "torch.Tensor") -> None:
        """Keeps these rows, in this order; `prompts` follows from them."""
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]

    def step(self, tokens: "torch.Tensor", positions: "torch.Tensor | None") -> "torch.Tensor":
        """As `SharedPrefixRows.step`."""
        import torch

        self._mask = torch.cat([self._mask, torch.ones_like(tokens)], dim=1)
        inputs = self._model.prepare_inputs_for_generation(
            tokens,
            past_key_values=self._cache,
            attention_mask=self._mask,
            position_ids=positions,
            use_cache=True,
        )
        return self._model(**inputs, return_dict=True).logits[:, -1].float()


def _bias(prefix: Prefix) -> "torch.Tensor":
    """(P, 1, 1, L): 0 on tokens, the lowest number of the keys' dtype on padding."""
    import torch

    dtype = prefix.cache.layers[0].keys.dtype
    bias = torch.zeros(prefix.attention_mask.shape, dtype=dtype, device=prefix.attention_mask.device)
    return bias.masked_fill_(prefix.attention_mask == 0, torch.finfo(dtype).min)[:, None, None]
