"""Attention over a prefix that many rows share, its keys and values stored once a prompt (paper, section 3.2).

The N candidates of a prompt have the same image and question in front of them. Expanding that prefix to N rows costs N
times its memory and reads it N times a step; here the N rows of a prompt attend to one copy of it with one matrix
product, and each row keeps only the tokens it has sampled itself.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ATTENTION = "m3po_shared_prefix"
FIRST_CAPACITY = 16


class SharedPrefixCache:
    """Keys and values of P prompts with W rows each; a decoder's attention calls `update` as on any cache.

    `prefix` holds a layer's (keys, values), each (P, key-value heads, prefix length, head dim). Rows are ordered prompt
    by prompt: row p * W + w. `bias` (P, 1, 1, prefix length) is 0 on a prompt's tokens, hugely negative on its padding.
    """

    is_initialized = True
    """What transformers' caches say after a prefill: some models tell a step from it."""

    def __init__(self, prefix: "list[tuple[torch.Tensor, torch.Tensor]]", bias: "torch.Tensor"):
        self.prefix = prefix
        self.bias = bias
        self._suffix: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(prefix)
        self._lengths = [0] * len(prefix)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens a row has seen in this layer, padding included."""
        return self.prefix[layer_idx][0].shape[2] + self._lengths[layer_idx]

    def update(
        self, keys: "torch.Tensor", values: "torch.Tensor", layer_idx: int, *args, **kwargs
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Appends a token (P * W, heads, 1, head dim) a row; returns the suffixes (P * W, heads, length, head dim)."""
        start = self._lengths[layer_idx]
        stop = self._lengths[layer_idx] = start + keys.shape[2]
        buffers = self._suffix[layer_idx]
        if buffers is None or buffers[0].shape[2] < stop:
            # Doubling copies each token less than twice in all; a cache that concatenates copies everything every step.
            capacity = max(FIRST_CAPACITY, 2 * stop)
            grown = tuple(new.new_empty(*new.shape[:2], capacity, new.shape[3]) for new in (keys, values))
            if buffers is not None:
                for new, old in zip(grown, buffers, strict=True):
                    new[:, :, :start] = old[:, :, :start]
            buffers = self._suffix[layer_idx] = grown
        buffers[0][:, :, start:stop] = keys
        buffers[1][:, :, start:stop] = values
        return buffers[0][:, :, :stop], buffers[1][:, :, :stop]

    def keep(self, prompts: "torch.Tensor", rows: "torch.Tensor") -> None:
        """Keeps these prompts (P',) and these flat rows (P' * W',), in this order."""
        if len(prompts) < len(self.bias):
            self.prefix = [_select(pair, prompts) for pair in self.prefix]
            self.bias = self.bias[prompts]
        self._suffix = [None if pair is None else _select(pair, rows) for pair in self._suffix]


def _select(pair: "tuple[torch.Tensor, torch.Tensor]", index: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    # Each layer may lie on a device of its own.
    keys, values = pair
    return keys[index.to(keys.device)], values[index.to(values.device)]


def shared_prefix_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    shared_prefix: SharedPrefixCache | None = None,
    **kwargs,
) -> "tuple[torch.Tensor, None]":
    """Attention of one query a row over its prompt's prefix and its own suffix; plain SDPA where no prefix is shared.

    `query` (P * W, heads, 1, head dim), `key` and `value` (P * W, key-value heads, suffix length, head dim); returns
    (P * W, 1, heads, head dim). Equal to attention over the concatenated keys up to rounding. Raises
    NotImplementedError for attention that caps its logits, adds a sink to them or looks through a window.
    """
    import torch

    if shared_prefix is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    for name in ("softcap", "s_aux", "sliding_window"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name} over a shared prefix")
    prefix_keys, prefix_values = shared_prefix.prefix[module.layer_idx]
    prompts, kv_heads, prefix_length, head_dim = prefix_keys.shape
    rows, heads = query.shape[:2]
    width, group = rows // prompts, heads // kv_heads
    query = query.reshape(rows, kv_heads, group, head_dim) * (head_dim**-0.5 if scaling is None else scaling)

    def by_prompt(x: torch.Tensor) -> torch.Tensor:
        """(P * W, kv heads, group, d) -> (P, kv heads, W * group, d)."""
        return x.view(prompts, width, kv_heads, group, -1).transpose(1, 2).reshape(prompts, kv_heads, width * group, -1)

    def by_row(x: torch.Tensor) -> torch.Tensor:
        return x.view(prompts, kv_heads, width, group, -1).transpose(1, 2).reshape(rows, kv_heads, group, -1)

    on_prefix = by_prompt(query) @ prefix_keys.transpose(2, 3) + attention_mask
    on_suffix = by_prompt(query @ key.transpose(2, 3))
    weights = torch.cat([on_prefix, on_suffix], dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    output = by_row(weights[..., :prefix_length] @ prefix_values)
    output = output + by_row(weights[..., prefix_length:]) @ value
    return output.reshape(rows, 1, heads, head_dim), None


def attend(language_model: "PreTrainedModel", implementation: str | None = None) -> None:
    """Makes the language model's layers attend by this module's attention, or by the named one.

    Raises ValueError for a model whose attention can't be exchanged.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    language_model.get_decoder().set_attn_implementation(implementation or ATTENTION)


def attention_of(language_model: "PreTrainedModel") -> str:
    """The name of the attention that the language model's layers use."""
    return language_model.get_decoder().config._attn_implementation
