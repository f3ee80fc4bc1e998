"""Gives TRL the hidden states of a model that keeps no backbone apart from its LM head.

TRL computes the answers' log-probs from `model.base_model`'s last hidden states. Most vision-language models have a
base model; BLIP-2's and InstructBLIP's are put together around a whole language model, LM head included, and are their
own `base_model`.
"""

from types import SimpleNamespace
from typing import Any

from m3po_dagster.method.optimization.lora import language_model_and_tower


def give_backbone(model: Any) -> None:
    """Makes `model.base_model(...)` return the language model's `last_hidden_state`, if `model` is its own base."""
    if model.base_model is not model:
        return
    forward = model.forward
    decoder, _ = language_model_and_tower(model)

    def backbone(**inputs: Any) -> SimpleNamespace:
        caught = []
        hook = decoder.register_forward_hook(lambda module, args, output: caught.append(output.last_hidden_state))
        try:
            # The LM head can't be left out; one position of logits is the least it computes.
            forward(**inputs, logits_to_keep=1)
        finally:
            hook.remove()
        return SimpleNamespace(last_hidden_state=caught[0])

    # The attribute that `base_model` looks up.
    setattr(model, model.base_model_prefix, backbone)
