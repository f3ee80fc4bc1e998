"""An engine's results in the order of the prompts, for tests that want them all."""

from collections.abc import Iterable, Sequence

from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.sampler import TransformersEngine


def in_order(results: Iterable[tuple[int, object]]) -> list:
    """The results by index; each index must come exactly once, none left out."""
    results = list(results)
    indices = sorted(i for i, _ in results)
    assert indices == list(range(len(results))), indices
    return [result for _, result in sorted(results, key=lambda item: item[0])]


def sample(loaded, prompts: Sequence, settings, seeds: Sequence[int], counts: Counts | None = None) -> list:
    """All samples of all prompts."""
    return in_order(TransformersEngine(loaded, counts or Counts()).sample(prompts, settings, seeds))


def answer_greedily(loaded, prompts: Sequence, max_new_tokens: int, at_once: int, counts: Counts | None = None) -> list:
    """All greedy answers."""
    return in_order(TransformersEngine(loaded, counts or Counts()).answer(prompts, max_new_tokens, at_once))
