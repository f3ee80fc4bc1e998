"""Turns training examples into the tensors that TRL's trainers expect, from the sampled token ids themselves.

TRL's own vision collators tokenise the answers' text again, which need not give the ids that were sampled, and drop
extra columns such as the stored log-probs.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch

# Prompts whose preprocessed image is kept: a 336-pixel image is 1.4 MB in fp32.
PROMPTS_KEPT = 512


class Batches:
    """Builds batches for `examples` with the model's processor.

    Rows are [prompt, image included][answer][padding on the right]; `completion_mask` is 1 on the answer. Every tensor
    that the processor gives besides is passed on: one of the prompt's shape (token types) gets zeros on the answer,
    the others (pixel values, image sizes) are concatenated. Raises ValueError, naming the pair, when an answer holds
    the image placeholder, which the model would replace by an image.
    """

    def __init__(self, processor: Any, examples: Sequence[PreferenceExample]) -> None:
        placeholder = processor.image_token_id
        for example in examples:
            if placeholder in example.chosen_ids + (example.rejected_ids or ()):
                raise ValueError(
                    f"pair {example.pair_id}: an answer holds the image placeholder (token {placeholder}); "
                    "suppress it while sampling"
                )
        self._processor = processor
        self._examples = examples
        self._encode = lru_cache(maxsize=PROMPTS_KEPT)(self._encode_prompt)

    def preference(self, rows: Sequence[dict]) -> "dict[str, torch.Tensor]":
        """A DPO batch of 2B rows, the B chosen first, with the stored log-probs (B,) as TRL's reference.

        `rows` are rows of the trainer's dataset, each naming its example's index under `row`; the indices come back
        under `rows` (B,).
        """
        import torch

        indices = [row["row"] for row in rows]
        picked = [self._examples[i] for i in indices]
        answers = [example.chosen_ids for example in picked] + [example.rejected_ids for example in picked]
        batch = self._tensors([example.prompt for example in picked] * 2, answers)
        batch["ref_chosen_logps"] = torch.tensor([example.ref_chosen_logp for example in picked])
        batch["ref_rejected_logps"] = torch.tensor([example.ref_rejected_logp for example in picked])
        batch["rows"] = torch.tensor(indices)
        return batch

    def supervised(self, rows: Sequence[dict]) -> "dict[str, torch.Tensor]":
        """An SFT batch of B rows; `labels` (B, length) is -100 outside R_w. `rows` as in `preference`."""
        import torch

        indices = [row["row"] for row in rows]
        picked = [self._examples[i] for i in indices]
        batch = self._tensors([example.prompt for example in picked], [example.chosen_ids for example in picked])
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        batch["rows"] = torch.tensor(indices)
        return batch

    def _tensors(self, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]]) -> "dict[str, torch.Tensor]":
        import torch
        from torch.nn.utils.rnn import pad_sequence

        encoded = [self._encode(prompt) for prompt in prompts]
        answer_ids = [torch.tensor(ids) for ids in answers]

        def rows(fill: int, prompt_parts: list, answer_parts: list) -> "torch.Tensor":
            joined = [torch.cat(parts) for parts in zip(prompt_parts, answer_parts, strict=True)]
            return pad_sequence(joined, batch_first=True, padding_value=fill)

        prompt_ids = [inputs["input_ids"][0] for inputs in encoded]
        zeros = [torch.zeros_like(ids) for ids in answer_ids]
        ones = [torch.ones_like(ids) for ids in answer_ids]
        batch = {
            "input_ids": rows(self._processor.tokenizer.pad_token_id, prompt_ids, answer_ids),
            "attention_mask": rows(0, [torch.ones_like(ids) for ids in prompt_ids], ones),
            "completion_mask": rows(0, [torch.zeros_like(ids) for ids in prompt_ids], ones),
        }
        for name in [name for name in encoded[0] if name not in batch]:
            parts = [inputs[name] for inputs in encoded]
            if parts[0].shape == encoded[0]["input_ids"].shape:
                batch[name] = rows(0, [part[0] for part in parts], zeros)
            else:
                batch[name] = torch.cat(parts)
        return batch

    def _encode_prompt(self, prompt: Prompt) -> "dict[str, torch.Tensor]":
        try:
            image = prompt.open_image()
        except OSError as error:
            raise ValueError(f"prompt {prompt.prompt_id}: image {prompt.image_path} can't be read: {error}") from error
        text = self._processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
        bos = self._processor.tokenizer.bos_token
        # As when the answers were sampled: a template that begins the sequence itself must not get a second beginning.
        special = bos is None or not text.startswith(bos)
        return dict(self._processor(images=[image], text=[text], add_special_tokens=special, return_tensors="pt"))
