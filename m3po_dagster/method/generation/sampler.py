"""Sampling with transformers: N candidates a prompt from the model itself, log-probs recorded on the way.

Paper, sections 3.2 and 3.4.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from m3po_dagster.method.generation.decode import Decoded, decode
from m3po_dagster.method.generation.encoding import PromptError, encode
from m3po_dagster.method.generation.engine import More
from m3po_dagster.method.generation.full_path import generate
from m3po_dagster.method.generation.memory import fitting, too_little
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.prefill import Counts, Prefix, prefill
from m3po_dagster.method.generation.samples import Failure, Sample
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.s3_files.path import BucketError

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature

    from m3po_dagster.method.generation.decode import Choose

    Chooser = Callable[[list[int], int, int], Choose]


MODEL_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, KeyError)
"""What a model's code raises on an input that it can't take."""


@dataclass
class TransformersEngine:
    """The engine that runs the model in this process; `counts` adds up over everything asked of it."""

    loaded: LoadedModel
    counts: Counts = field(default_factory=Counts)

    @property
    def numerics(self) -> str:
        """Engine and precision."""
        return self.loaded.numerics

    @property
    def path(self) -> str:
        """How the rows are decoded (see `paths`)."""
        return self.loaded.paths.sampling

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        seeds: Sequence[int],
        more: More | None = None,
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """The N samples of each prompt in sampling order, or why there are none, batch after batch (section 3.2).

        `seeds` gives a seed a prompt: its samples depend on prompt and seed alone, whatever else is in the batch, and
        in float32 on CPU are the tokens `generate(do_sample=True, num_return_sequences=N, top_k=0)` gives after
        `torch.manual_seed(seed)` with the same ids suppressed. An answer ends at the latest where the model's
        positions do.

        With an adaptive N a prompt is read once for all its rounds; each is drawn like N samples of its own, from the
        seed plus the number of samples before it. `more` stops a prompt after a round (section 4.9); without it every
        prompt goes through all rounds, and its samples are the same.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")

        def chooser(kept: list[int], n: int, drawn: int) -> _Multinomial:
            return _Multinomial(self.loaded, settings, n, [seeds[i] + drawn for i in kept])

        return self._in_batches(
            prompts, settings.rounds, settings.max_new_tokens, settings.prompts_per_batch, chooser, more
        )

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

        for i, answer in self._in_batches(prompts, (1,), max_new_tokens, at_once, lambda *_: likeliest):
            yield i, answer if isinstance(answer, Failure) else answer[0]

    def _in_batches(
        self,
        prompts: Sequence[Prompt],
        rounds: Sequence[int],
        max_new_tokens: int,
        batch_size: int,
        chooser: "Chooser",
        more: More | None = None,
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """Batch after batch, of half the size from where one did not fit in memory.

        A prompt that by itself does not fit, or that the model fails on, is given up with the reason; the others go on.
        `chooser` takes the indices of the prompts in a round, its size and the samples before it, and gives what
        `decode` picks by.
        """
        limits, most = self.loaded.limits, max(rounds)
        if self.loaded.paths.sampling == "generate":
            # That path gains nothing from others beside it, and what is finished is given sooner.
            batch_size = 1
        start, alone_until = 0, 0
        before = replace(limits)
        while start < len(prompts):
            at_once = min(limits.prompts or batch_size, batch_size, len(prompts) - start)
            at_once = 1 if start < alone_until else at_once
            rows = min(limits.rows or most, most)
            batch = self._batch(prompts, range(start, start + at_once), rounds, rows, max_new_tokens, chooser, more)
            try:
                found = fitting(lambda batch=batch: list(batch))
            except BucketError:
                raise
            except MODEL_FAULTS as error:
                # One prompt spoils the batch: found by itself, it fails alone.
                if at_once > 1:
                    alone_until = start + at_once
                    continue
                reason = f"the model fails on it: {type(error).__name__}: {error}"
                found = [(start, Failure(str(PromptError(prompts[start], reason))))]
            if found is not None:
                limits.note_fit(batch_size, most)
            elif limits.halve_sampling(at_once, rows):
                self.counts.halvings += 1
                continue
            else:
                reason = str(too_little("one answer alone", self.loaded.device.type))
                found = [(start, Failure(str(PromptError(prompts[start], reason))))]
                limits.prompts, limits.rows = before.prompts, before.rows
            yield from found
            start += at_once
            before = replace(limits)

    def _batch(
        self,
        prompts: Sequence[Prompt],
        some: range,
        rounds: Sequence[int],
        rows: int,
        max_new_tokens: int,
        chooser: "Chooser",
        more: More | None,
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """`some` of the prompts at once, at most `rows` rows of each at a time."""
        loaded, asked = self.loaded, [prompts[i] for i in some]
        if loaded.paths.sampling != "generate":
            prefix, kept, errors = prefill(loaded, asked, self.counts)
            yield from ((some[i], Failure(str(error))) for i, error in errors.items())
            if prefix is not None:
                start = _FromPrefix(loaded, prefix, self.counts)
                yield from _in_rounds(start, [some[i] for i in kept], rounds, rows, max_new_tokens, chooser, more)
            return
        for i, prompt in zip(some, asked, strict=True):
            encoded = encode(loaded, [prompt])
            if encoded.inputs is None:
                yield i, Failure(str(encoded.errors[0]))
                continue
            start = _FromInputs(loaded, encoded.inputs.to(loaded.device), self.counts)
            yield from _in_rounds(start, [i], rounds, rows, max_new_tokens, chooser, more)


@dataclass
class _FromPrefix:
    """Prompts that have been read, to be continued again and again."""

    loaded: LoadedModel
    prefix: Prefix
    counts: Counts

    def rows(self, group: range, max_new_tokens: int, choose: "Choose") -> Decoded:
        return decode(self.loaded, self.prefix, group, max_new_tokens, choose, self.counts)

    def keep(self, prompts: list[int]) -> None:
        self.prefix = self.prefix.keep(prompts)


@dataclass
class _FromInputs:
    """One prompt that is read for every row anew."""

    loaded: LoadedModel
    inputs: "BatchFeature"
    counts: Counts

    def rows(self, group: range, max_new_tokens: int, choose: "Choose") -> Decoded:
        return generate(self.loaded, self.inputs, group, max_new_tokens, choose, self.counts)


def _in_rounds(
    start: _FromPrefix | _FromInputs,
    indices: list[int],
    rounds: Sequence[int],
    rows: int,
    max_new_tokens: int,
    chooser: "Chooser",
    more: More | None,
) -> Iterator[tuple[int, list[Sample]]]:
    """All rounds from one start, which the prompts that need no further round leave."""
    found: dict[int, list[Sample]] = {i: [] for i in indices}
    for number, n in enumerate(rounds, start=1):
        for first in range(0, n, rows):
            # A group draws from the start of its prompt's stream again, so that its rows get what is theirs.
            choose = chooser(indices, n, sum(rounds[: number - 1]))
            decoded = start.rows(range(first, min(first + rows, n)), max_new_tokens, choose)
            for p, i in enumerate(indices):
                found[i] += _samples(start.loaded, decoded, p)
        if number == len(rounds):
            going = [False] * len(indices)
        else:
            going = more([(i, found[i]) for i in indices]) if more else [True] * len(indices)
        yield from ((i, found.pop(i)) for i, goes_on in zip(indices, going, strict=True) if not goes_on)
        if not any(going):
            return
        if not all(going):
            start.keep([p for p, goes_on in enumerate(going) if goes_on])
            indices = list(found)


class _Multinomial:
    """Temperature, top-p and a draw, each prompt from a random stream of its own."""

    def __init__(self, loaded: LoadedModel, settings: SamplingSettings, n: int, seeds: list[int]):
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        self.n = n
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


def _samples(loaded: LoadedModel, decoded: Decoded, prompt: int) -> list[Sample]:
    """The samples of one of the prompts that were decoded together."""
    lengths, stopped = decoded.lengths[prompt].tolist(), decoded.stopped[prompt].tolist()
    ids = [row[:length] for row, length in zip(decoded.tokens[prompt].tolist(), lengths, strict=True)]
    texts = loaded.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [
        Sample(text.strip(), tuple(row), "stop" if stop else "length", tuple(logps[: len(row)]))
        for text, row, stop, logps in zip(texts, ids, stopped, decoded.token_logps[prompt].tolist(), strict=True)
    ]
