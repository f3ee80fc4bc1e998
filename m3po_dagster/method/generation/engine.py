"""What samples and answers prompts: a model in this process, or a server (paper, section 3.2)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.samples import Answer, Failure, Sample
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.prompt import Prompt

More = Callable[[Sequence[tuple[int, list[Sample]]]], list[bool]]
"""After a round: (index of a prompt, all its samples so far) -> whether it gets another, for as many prompts as have
finished one. Not asked after the last round, nor about failed prompts; never by two threads at once."""


class Engine(Protocol):
    """Both methods give (index of the prompt, its result) when a prompt is done, in whatever order they come.

    `numerics` names engine and precision: log-probs are comparable only where it is equal. `counts` is what has
    been done so far.
    """

    counts: Counts

    @property
    def numerics(self) -> str: ...

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        seeds: Sequence[int],
        more: More | None = None,
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """The samples of each prompt in sampling order, or why there are none.

        Drawn in the rounds of `settings`, each from the prompt's seed plus the number of its samples so far; a prompt
        gets no further round once `more` says so (section 4.9).
        """

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, at_once: int
    ) -> Iterator[tuple[int, Sample | Answer | Failure]]:
        """The greedy answer of each prompt, `at_once` prompts in flight, or why there is none (section 4.1)."""
