"""What a proxy reward reads off the frozen base model about an answer (paper, section 4.1, simulated RLHF).

The hidden state alone tells hardly whether what a token says is in the image: it is made to predict the next one. What
tells it is how far the state before a token points at that token, and in which directions: the two vectors whose inner
product is the token's logit, multiplied part by part.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.optimization.batches import Batches
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch


class AnswerFeatures:
    """Reads answers to (n, 3 x hidden size) float32 features with `loaded`'s model, an adapter on it switched off.

    They are the mean over the answer of the last hidden state at each token; the mean of its state before each token
    times, part by part, the LM head's row of the token; and the least of these, part by part.
    Made before the model gets its adapter, it reads the base model as long as it is called with the adapter off.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded, self._batches = loaded, Batches(loaded, ())
        # Without the LM head: (batch, sequence, vocabulary) logits are most of a forward's memory.
        self._backbone = loaded.model.base_model

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> np.ndarray:
        """One forward over prompts with an answer of token ids each. Raises PromptError for an unreadable prompt."""
        import torch

        batch = self._batches.tensors(prompts, answers)
        own = batch.pop("completion_mask").bool()
        with torch.no_grad():
            inputs = {name: tensor.to(self._loaded.device) for name, tensor in batch.items()}
            states = self._backbone(**inputs, use_cache=False).last_hidden_state
            starts = own.int().argmax(dim=1).tolist()
            read = [
                self._of_answer(states[row, start - 1 : start + len(answer)], answer)
                for row, (start, answer) in enumerate(zip(starts, answers, strict=True))
            ]
        return torch.stack(read).cpu().numpy()

    def _of_answer(self, states: "torch.Tensor", answer: Sequence[int]) -> "torch.Tensor":
        """`states` (tokens + 1, hidden): before the first token of the answer, and at each of them."""
        import torch

        head: Any = self._loaded.model.get_output_embeddings().weight
        rows = head[torch.tensor(answer, device=head.device)].to(states.device).float()
        states = states.float()
        evidence = states[:-1] * rows
        return torch.cat([states[1:].mean(dim=0), evidence.mean(dim=0), evidence.amin(dim=0)])
