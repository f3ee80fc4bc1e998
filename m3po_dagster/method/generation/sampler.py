"""Sampling with transformers: N candidates a prompt from the model itself, log-probs recorded on the way.

Paper, sections 3.2 and 3.4.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.decode import Decoded, decode
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts, prefill
from m3po_dagster.method.generation.samples import Failure, Sample
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    import torch


@dataclass
class TransformersEngine:
    """The engine that runs the model in this process; `counts` adds up over everything asked of it."""

    loaded: LoadedModel
    counts: Counts = field(default_factory=Counts)

    @property
    def numerics(self) -> str:
        """Engine and precision."""
        return self.loaded.numerics

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """The N samples of each prompt in sampling order, or why there are none, batch after batch (section 3.2).

        `seeds` gives a seed a prompt: its samples depend on prompt and seed alone, whatever else is in the batch, and
        in float32 on CPU are the tokens `generate(do_sample=True, num_return_sequences=N, top_k=0)` gives after
        `torch.manual_seed(seed)` with the same ids suppressed. An answer ends at the latest where the model's
        positions do.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")

        def chooser(kept: list[int]) -> _Multinomial:
            return _Multinomial(self.loaded, settings, [seeds[i] for i in kept])

        return self._in_batches(prompts, settings.n, settings.max_new_tokens, settings.prompts_per_batch, chooser)

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, at_once: int
    ) -> Iterator[tuple[int, Sample | Failure]]:
        """The likeliest-token answer of each prompt, as the benchmarks ask for (section 4.1), or why there is none.

        The ids of `loaded.suppressed` are left out, as in sampling: a placeholder is no answer. Prompts of a batch on
        the same image share its encoding.
        """
        suppress = _suppression(self.loaded)

        def likeliest(logits: "torch.Tensor", prompt_of: "torch.Tensor", row_of: "torch.Tensor") -> "torch.Tensor":
            return suppress(None, logits).argmax(dim=-1)

        for i, answer in self._in_batches(prompts, 1, max_new_tokens, at_once, lambda kept: likeliest):
            yield i, answer if isinstance(answer, Failure) else answer[0]

    def _in_batches(
        self,
        prompts: Sequence[Prompt],
        n: int,
        max_new_tokens: int,
        batch_size: int,
        chooser: "Callable[[list[int]], Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]",
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """`chooser` takes the indices of a batch's readable prompts and gives what `decode` picks by."""
        for start in range(0, len(prompts), batch_size):
            prefix, kept, errors = prefill(self.loaded, prompts[start : start + batch_size], self.counts)
            yield from ((start + i, Failure(str(error))) for i, error in errors.items())
            if prefix is not None:
                indices = [start + i for i in kept]
                decoded = decode(self.loaded, prefix, n, max_new_tokens, chooser(indices), self.counts)
                yield from zip(indices, _samples(self.loaded, decoded), strict=True)


class _Multinomial:
    """Temperature, top-p and a draw, each prompt from a random stream of its own."""

    def __init__(self, loaded: LoadedModel, settings: SamplingSettings, seeds: list[int]):
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        self.n = settings.n
        self.warp = LogitsProcessorList([_suppression(loaded), TemperatureLogitsWarper(settings.temperature)])
        if settings.top_p < 1:
            self.warp.append(TopPLogitsWarper(settings.top_p))
        self.generators = [torch.Generator(loaded.device).manual_seed(seed) for seed in seeds]

    def __call__(self, logits: "torch.Tensor", prompt_of: "torch.Tensor", row_of: "torch.Tensor") -> "torch.Tensor":
        """(P, W, vocabulary) -> (P, W) token ids."""
        prompts, width, vocabulary = logits.shape
        probabilities = self.warp(None, logits.reshape(-1, vocabulary)).softmax(dim=-1).view_as(logits)
        # torch.multinomial's own way of drawing, argmax of p / Exp(1), spelt out: the noise of all N rows is drawn even
        # when some are finished, so that a prompt's stream doesn't depend on which rows are still in the batch.
        noise = logits.new_empty(prompts, self.n, vocabulary)
        for one, index in zip(noise, prompt_of.tolist(), strict=True):
            one.exponential_(generator=self.generators[index])
        if width < self.n:
            noise = noise.gather(1, row_of[..., None].expand(-1, -1, vocabulary))
        return (probabilities / noise).argmax(dim=-1)


def _suppression(loaded: LoadedModel):
    from transformers import SuppressTokensLogitsProcessor

    return SuppressTokensLogitsProcessor(loaded.suppressed, device=loaded.device)


def _samples(loaded: LoadedModel, decoded: Decoded) -> list[list[Sample]]:
    tokens, logps = decoded.tokens.tolist(), decoded.token_logps.tolist()
    lengths, stopped = decoded.lengths.tolist(), decoded.stopped.tolist()
    samples = []
    for p, rows in enumerate(tokens):
        ids = [row[:length] for row, length in zip(rows, lengths[p], strict=True)]
        texts = loaded.tokenizer.batch_decode(ids, skip_special_tokens=True)
        samples.append(
            [
                Sample(text.strip(), tuple(row), "stop" if stop else "length", tuple(logp[: len(row)]))
                for text, row, stop, logp in zip(texts, ids, stopped[p], logps[p], strict=True)
            ]
        )
    return samples
