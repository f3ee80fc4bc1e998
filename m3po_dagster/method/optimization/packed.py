"""The packed layout: a pair is one row, [prompt, image included][chosen][rejected], neither answer seeing the other.

TRL gives the model two rows a pair, prompt and image in both. Here the language model reads the prompt once: half the
rows, half the images, and the loss is TRL's own, for it gets its two rows of log-probs back.

    refuse_unpackable(model)
    pack(model)                             # forwards that are given `prompt_lengths` are packed from now on
"""

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.encoding import grown
from m3po_dagster.method.optimization.lora import language_model_and_tower

if TYPE_CHECKING:
    import torch

INSTEAD = "use `layout: trl`"


def refuse_unpackable(model: Any) -> None:
    """Raises ValueError for a model whose layers, by their kind, can't keep two answers of a row apart."""
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    decoder, _ = language_model_and_tower(model)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        kinds = {"sliding_attention"}
    if kinds:
        raise ValueError(
            f"layout packed: {name} has layers ({', '.join(sorted(kinds))}) that go by a token's place in the row, and "
            f"the rejected answer stands behind the chosen one; {INSTEAD}"
        )
    attention = decoder.config._attn_implementation
    if any(kind in attention for kind in ("flash", "flex", "paged")):
        raise ValueError(
            f"layout packed: {name} attends by {attention}, which takes no mask of every token against every other; "
            f"load it with sdpa, or {INSTEAD}"
        )


def pack(model: Any) -> None:
    """Makes `model.forward`, which has TRL's fused LM head, pack what it is given together with `prompt_lengths`.

    What it is given is TRL's: 2B rows of tokens, the B chosen first, `labels` -100 outside the answers, padded on the
    right; `prompt_lengths` (B,) are the prompts' numbers of tokens, and images come once a prompt. What it returns is
    TRL's as well, 2B rows. The model itself runs on B rows; the module that reads them, the language model, gets the
    mask and the positions of every answer by itself, and hands on the hidden states that predict an answer's token.
    """
    forward = model.forward
    decoder, _ = language_model_and_tower(model)
    dtype = decoder.get_input_embeddings().weight.dtype

    # `generate` reads the signature.
    @functools.wraps(forward)
    def packed(*args: Any, prompt_lengths: "torch.Tensor | None" = None, **kwargs: Any) -> Any:
        if prompt_lengths is None:
            return forward(*args, **kwargs)
        rows = Rows(prompt_lengths, kwargs.pop("labels"))
        for name in ("input_ids", *(name for name in grown(model, kwargs) if name in kwargs)):
            kwargs[name] = rows.packed(kwargs[name])
        kwargs["attention_mask"] = rows.own.to(kwargs["attention_mask"])
        hooks = [
            decoder.register_forward_pre_hook(
                lambda module, args, given: (args, rows.told(given, dtype)), with_kwargs=True
            ),
            decoder.register_forward_hook(lambda module, args, output: rows.predicting(output)),
        ]
        try:
            outputs = forward(*args, shift_labels=rows.answers, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return rows.unpacked(outputs)

    model.forward = packed


@dataclass(frozen=True)
class Rows:
    """Where in B packed rows the tokens of TRL's 2B rows are. `prompt_lengths` (B,), `labels` (2B, length)."""

    prompt_lengths: "torch.Tensor"
    labels: "torch.Tensor"

    @cached_property
    def lengths(self) -> "torch.Tensor":
        """Tokens (2B,) of each answer."""
        return (self.labels != -100).sum(dim=1)

    @cached_property
    def rejected(self) -> "torch.Tensor":
        """Column (B, 1) of a row's first rejected token. An answer's last token is predicted, never read: left out."""
        chosen, _ = self.lengths.chunk(2)
        return (self.prompt_lengths + chosen - 1)[:, None]

    @cached_property
    def ends(self) -> "torch.Tensor":
        """Number (B, 1) of a row's tokens."""
        _, rejected = self.lengths.chunk(2)
        return self.rejected + rejected[:, None] - 1

    @cached_property
    def columns(self) -> "torch.Tensor":
        """(1, packed length)"""
        import torch

        return torch.arange(int(self.ends.max()), device=self.labels.device)[None]

    @cached_property
    def own(self) -> "torch.Tensor":
        """(B, packed length): whether a token is no padding."""
        return self.columns < self.ends

    @cached_property
    def shift(self) -> "torch.Tensor":
        """(B, packed length): by how much a token stands further right than in TRL's rows."""
        chosen, _ = self.lengths.chunk(2)
        return (self.columns >= self.rejected) * (chosen[:, None] - 1)

    def packed(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """(2B, length, ...) to (B, packed length, ...); the padding repeats a row's last token."""
        import torch

        pairs = len(self.prompt_lengths)
        columns = torch.minimum(self.columns, self.ends - 1)
        rows = torch.arange(pairs, device=columns.device)[:, None] + pairs * (columns >= self.rejected)
        return tokens[rows, columns - self.shift.gather(1, columns)]

    def told(self, given: dict[str, Any], dtype: "torch.dtype") -> dict[str, Any]:
        """What the language model is told, with the mask and the positions of every answer by itself."""
        positions = given.get("position_ids")
        told = self.columns if positions is None else positions
        return {
            **given,
            "position_ids": told - self.shift,
            "attention_mask": self._masked(given.get("attention_mask"), dtype),
        }

    def _masked(self, mask: Any, dtype: "torch.dtype") -> Any:
        """The model's own mask, (B, length), (B, 1, length, length) or some by name, without rejected seeing chosen."""
        import torch

        if isinstance(mask, dict):
            return {name: self._masked(one, dtype) for name, one in mask.items()}
        after_prompt = self.columns >= self.prompt_lengths[:, None]
        second = self.columns >= self.rejected
        hidden = second[:, :, None] & (after_prompt & ~second)[:, None, :]
        if mask is None or mask.ndim == 2:
            later = self.columns[0][None, None, :] > self.columns[0][None, :, None]
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)[:, None]
            hidden = hidden | later | ~self.own[:, None, :]
        if mask.dtype == torch.bool:
            return mask & ~hidden[:, None]
        return mask.masked_fill(hidden[:, None], torch.finfo(mask.dtype).min)

    @cached_property
    def _predicting(self) -> "torch.Tensor":
        """(2B, longest answer): the column that predicts an answer's token; the prompt's last predicts the first."""
        import torch

        prompts = self.prompt_lengths[:, None]
        token = torch.arange(int(self.lengths.max()), device=self.labels.device)[None]
        chosen = prompts - 1 + token
        rejected = torch.where(token == 0, prompts - 1, self.rejected - 1 + token)
        # Beyond an answer's end, whatever is there: no label asks for it.
        return torch.cat([chosen, rejected]).clamp(max=self.columns.shape[1] - 1)

    def predicting(self, output: Any) -> Any:
        """The language model's output with the hidden states (2B, longest answer, width) that predict the answers."""
        import torch

        pair = torch.arange(len(self.prompt_lengths), device=self.labels.device).repeat(2)[:, None]
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden[pair.to(hidden.device), self._predicting.to(hidden.device)]
        return output

    @cached_property
    def _tokens(self) -> "torch.Tensor":
        """(2B, longest answer): whether an answer has a token there."""
        import torch

        return torch.arange(int(self.lengths.max()), device=self.labels.device)[None] < self.lengths[:, None]

    @cached_property
    def answers(self) -> "torch.Tensor":
        """The answers' tokens (2B, longest answer), -100 after their end."""
        found = self.labels.new_full(self._tokens.shape, -100)
        return found.masked_scatter(self._tokens, self.labels[self.labels != -100])

    def unpacked(self, outputs: Any) -> Any:
        """TRL's output, its fields (2B, longest answer) where they are in TRL's rows, (2B, length - 1)."""
        there = self.labels[:, 1:] != -100
        for name, value in list(outputs.items()):
            if value.shape == self._tokens.shape:
                found, where = value[self._tokens.to(value.device)], there.to(value.device)
                outputs[name] = value.new_zeros(where.shape).masked_scatter(where, found)
        return outputs
