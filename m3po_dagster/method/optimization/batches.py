"""Turns training examples into the tensors that TRL's trainers expect, from the sampled token ids themselves.

TRL's own vision collators tokenise the answers' text again, which need not give the ids that were sampled, and drop
extra columns such as the stored log-probs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.generation.encoding import append, encode, grown
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    from m3po_dagster.method.optimization.image_features import ImageFeatures


class Batches:
    """Builds batches for `examples` with the model's processor.

    Rows are [prompt, image included][answer][padding on the right]; `completion_mask` is 1 on the answer. The processor
    sees a batch's prompts in one call, so that images of different sizes and numbers of tiles are put together its own
    way. What the processor gives token by token (token types, which tokens see the image) goes on over the answer as it
    does over tokens that the model generates; every other tensor is passed on as it is. `weights` (one an example) make
    DPO batches carry `pair_weights`. `packed` makes them carry an image a pair, not a row, and `prompt_lengths`, by
    which the model packs a pair's two rows into one (packed.py). With `features` set, images are given encoded.
    Raises ValueError, naming the pair, when an answer holds the image placeholder, which the model would replace by an
    image; building a batch raises PromptError, a ValueError that names the prompt and its image, for a prompt that
    can't be read.
    """

    features: "ImageFeatures | None" = None

    def __init__(
        self,
        loaded: LoadedModel,
        examples: Sequence[PreferenceExample],
        weights: Sequence[float] | None = None,
        packed: bool = False,
    ) -> None:
        placeholder = loaded.image_token_id
        for example in examples:
            if placeholder in example.chosen_ids + (example.rejected_ids or ()):
                raise ValueError(
                    f"pair {example.pair_id}: an answer holds the image placeholder (token {placeholder}); "
                    "suppress it while sampling"
                )
        self._loaded = loaded
        self._examples = examples
        self._weights = weights
        self._packed = packed

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._examples)

    def preference(self, rows: Sequence[dict], packed: bool | None = None) -> dict[str, Any]:
        """A DPO batch of 2B rows, the B chosen first, with the stored log-probs (B,) as TRL's reference.

        `rows` are rows of the trainer's dataset, each naming its example's index under `row`; the indices come back
        under `rows` (B,). `packed` is that of all batches, unless it is given.
        """
        import torch

        packed = self._packed if packed is None else packed
        indices = [row["row"] for row in rows]
        picked = [self._examples[i] for i in indices]
        answers = [example.chosen_ids for example in picked] + [example.rejected_ids for example in picked]
        batch = self._tensors([example.prompt for example in picked] * (1 if packed else 2), answers)
        if packed:
            batch["prompt_lengths"] = batch["completion_mask"][: len(picked)].argmax(dim=1)
        batch["ref_chosen_logps"] = torch.tensor([example.ref_chosen_logp for example in picked])
        batch["ref_rejected_logps"] = torch.tensor([example.ref_rejected_logp for example in picked])
        if self._weights is not None:
            batch["pair_weights"] = torch.tensor([self._weights[i] for i in indices])
        batch["rows"] = torch.tensor(indices)
        return batch

    def supervised(self, rows: Sequence[dict]) -> dict[str, Any]:
        """An SFT batch of B rows; `labels` (B, length) is -100 outside R_w. `rows` as in `preference`."""
        import torch

        indices = [row["row"] for row in rows]
        picked = [self._examples[i] for i in indices]
        batch = self._tensors([example.prompt for example in picked], [example.chosen_ids for example in picked])
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        batch["rows"] = torch.tensor(indices)
        return batch

    def _tensors(self, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        """A row an answer; the answers go through the prompts, all of them a whole number of times."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        tokens, images = self._encoded(prompts) if self.features is None else self._remembered(prompts)
        rows = []
        for row, answer in enumerate(answers):
            rows.append(append(self._loaded.model, tokens[row % len(prompts)], answer))
            rows[-1]["completion_mask"] = torch.ones_like(rows[-1]["input_ids"])
            rows[-1]["completion_mask"][:, : -len(answer)] = 0
        fills = {"input_ids": self._loaded.tokenizer.pad_token_id}
        padded = {
            name: pad_sequence([row[name][0] for row in rows], batch_first=True, padding_value=fills.get(name, 0))
            for name in rows[0]
        }
        return {**images, **padded}

    def _encoded(self, prompts: Sequence[Prompt]) -> tuple[list[dict], dict[str, Any]]:
        """Each prompt's tensors along its tokens, without padding, and what the processor makes of the images."""
        answerable = encode(self._loaded, prompts)
        if answerable.errors:
            raise next(iter(answerable.errors.values()))
        encoded = dict(answerable.inputs)
        own = encoded["attention_mask"].bool()
        token_wise = {name: encoded.pop(name) for name in ("input_ids", *grown(self._loaded.model, encoded))}
        tokens = [
            {name: value[row : row + 1, own[row]] for name, value in token_wise.items()} for row in range(len(prompts))
        ]
        return tokens, encoded

    def _remembered(self, prompts: Sequence[Prompt]) -> tuple[list[dict], dict[str, Any]]:
        """The same, the images encoded."""
        looks = self.features.looks(prompts)
        return [look.tokens for look in looks], self.features.batch(looks)
