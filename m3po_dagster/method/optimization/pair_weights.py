"""A weight a pair in the loss: how much surer the judge is of it than of the others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m3po_dagster.method.optimization.examples import PreferenceExample

if TYPE_CHECKING:
    import torch

    from m3po_dagster.method.optimization.settings import DpoSettings


def weights_of(examples: Sequence[PreferenceExample], settings: "DpoSettings") -> list[float] | None:
    """Each example's weight, 1 on average: its MAS gap over the mean gap; None where the settings ask for no weights.

    Raises ValueError naming the first pair whose gap is unknown or not above 0.
    """
    if settings.pair_weight == "none":
        return None
    for example in examples:
        if example.mas_gap is None or not example.mas_gap > 0:
            raise ValueError(
                f"pair {example.pair_id}: its MAS gap is {example.mas_gap}, and pair_weight mas_gap needs one above 0; "
                "use a selection rule that prefers the answer of higher MAS, or pair_weight: none"
            )
    mean = sum(example.mas_gap for example in examples) / len(examples)
    return [example.mas_gap / mean for example in examples]


def weigh(model: Any, wpo: bool) -> None:
    """Makes TRL multiply each pair's loss by the batch's `pair_weights` (B,), and by its own WPO weights if `wpo`.

    `model` has TRL's fused LM head and its trainer weighs the loss (`use_weighting`). TRL's weight of a row is the
    exponential of the mean over its answer's tokens of `log_probs - log_sum_sq_probs`, and a pair's the product of its
    rows'; so a constant taken from the second term of a chosen answer's tokens multiplies that pair's loss alone, and
    the loss itself stays TRL's.
    """
    import functools

    import torch

    forward = model.forward

    # `generate` reads the signature.
    @functools.wraps(forward)
    def weighed(*args: Any, pair_weights: "torch.Tensor | None" = None, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        if pair_weights is not None:
            term = outputs.log_sum_sq_probs if wpo else outputs.log_probs.detach()
            logs = torch.cat([pair_weights.log(), torch.zeros_like(pair_weights)]).to(term)
            outputs.log_sum_sq_probs = term - logs[:, None]
        return outputs

    model.forward = weighed
