"""What samples and answers prompts: a model in this process, or a server (paper, section 3.2)."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.samples import Answer, Failure, Sample
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.prompt import Prompt


class Engine(Protocol):
    """Both methods give (index of the prompt, its result) when a prompt is done, in whatever order they come.

    `numerics` names engine and precision: log-probs are comparable only where it is equal. `counts` is what has
    been done so far.
    """

    counts: Counts

    @property
    def numerics(self) -> str: ...

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """The N samples of each prompt in sampling order, drawn from its seed, or why there are none."""

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, at_once: int
    ) -> Iterator[tuple[int, Sample | Answer | Failure]]:
        """The greedy answer of each prompt, `at_once` prompts in flight, or why there is none (section 4.1)."""
