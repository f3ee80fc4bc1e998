"""P_ref of equation 4 where the stored log-probs are another engine's: scored again with the trainer's own numerics.

Selection keeps the log-probs it selected by; the loss compares a policy with its own start, and a reference of other
numerics would put the engines' difference into every pair's margin.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.optimization.examples import PreferenceExample


def rescored(
    loaded: LoadedModel,
    examples: Sequence[PreferenceExample],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PreferenceExample], Counts]:
    """The examples with their reference log-probs under `loaded`, and what that took: a prefill and a forward a pair.

    Raises PromptError naming a prompt that can't be read.
    """
    counts, found = Counts(), []
    for done, example in enumerate(examples, start=1):
        answers = [example.chosen_ids] + ([] if example.rejected_ids is None else [example.rejected_ids])
        scores = score_continuations(loaded, example.prompt, answers, counts=counts)
        sums = [score.sum_logp for score in scores] + [None] * (2 - len(scores))
        found.append(replace(example, ref_chosen_logp=sums[0], ref_rejected_logp=sums[1]))
        if progress is not None:
            progress(done, len(examples))
    return found, counts
