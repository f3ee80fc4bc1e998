"""Sampling from a server: N candidates a prompt over HTTP, ids and log-probs as the server sampled them (section 3.2).

Sample k of a prompt is drawn from the prompt's seed + k, whichever request it comes with: a choice that is missing or
can't be used is asked for again by itself, with its own seed, so that trouble on the way changes no candidate.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from m3po_dagster.method.endpoint import MESSAGE_LENGTH, Endpoint, EndpointError, Refused, Unanswered
from m3po_dagster.method.generation.adapter import Adapter
from m3po_dagster.method.generation.encoding import PromptError, render
from m3po_dagster.method.generation.engine import More
from m3po_dagster.method.generation.generator_settings import ServerSettings
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.samples import Answer, Failure, Sample
from m3po_dagster.method.generation.served_reply import UnusableReply, read_answer, read_prompt_ids, read_samples
from m3po_dagster.method.generation.served_request import greedy_fields, prompt_fields, sampling_fields
from m3po_dagster.method.generation.settings import SamplingSettings
from m3po_dagster.method.generation.vocabulary import Vocabulary
from m3po_dagster.method.image_url import data_url
from m3po_dagster.method.prompt import Prompt

TRIES = 3
"""How often a choice is asked for before its prompt is given up; the client's own retries come on top."""
OUTAGE = 3
"""Prompts in a row that got nothing usable: the server's fault, not theirs, and the work stops."""
IMAGES_KEPT = 8

Outcome = list[Sample | Answer | str | None]
"""What a request gave for each sample it asked for: it, why its choice can't be used, or None for no choice."""


@dataclass
class _Asked:
    """A prompt on its way: `found` by sample, `tries` by sample, requests still out."""

    index: int
    prompt: Prompt
    body: dict
    found: list[Sample | Answer | None] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)
    rounds: int = 0
    """How many it has begun."""
    out: int = 0
    failure: str = ""
    """Why it is given up; empty while it is not."""
    own_fault: bool = False
    """Whether the server refused this prompt, which says nothing about the next."""

    @property
    def complete(self) -> bool:
        return all(one is not None for one in self.found)

    def failed(self) -> tuple[int, Failure]:
        """What is said of it when it is given up."""
        return self.index, Failure(f"prompt {self.prompt.prompt_id}: {self.failure}")


@dataclass
class ServedEngine:
    """The engine that asks a server; `counts` adds up over everything asked of it, by one caller at a time."""

    settings: ServerSettings
    vocabulary: Vocabulary
    adapter: Adapter | None = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        """Raises ValueError for a key that is not set, EndpointError when an adapter can't be loaded."""
        self._lock = threading.Lock()
        self._endpoint = Endpoint(self.settings, "generator", self._sent)
        self._model = self.settings.model
        self._at_most = self.settings.choices_a_request
        self._short_replies = self._cap = 0
        self._data_url = lru_cache(maxsize=IMAGES_KEPT)(self._encode)
        if self.adapter is not None:
            self._model = self.settings.adapter_model(self.adapter)
            if self.settings.load_adapters:
                self._load_adapter(self.adapter)

    @property
    def numerics(self) -> str:
        """Engine, version and precision as the study declares them."""
        return self.settings.numerics

    @property
    def path(self) -> str:
        """How the rows are decoded: the server's own business."""
        return "server"

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        seeds: Sequence[int],
        more: More | None = None,
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """The samples of each prompt, as prompts finish, or why there are none.

        At most `max_parallel` requests are in flight. After each of the settings' rounds but the last `more` says which
        prompts get another; their samples are the same however many rounds they came in. Raises EndpointError when the
        server can't be reached, refuses key or model, or gave nothing usable for OUTAGE prompts in a row.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")

        def ask(asked: _Asked, first: int, n: int) -> Outcome:
            fields = sampling_fields(settings, seeds[asked.index] + first, n)
            return list(read_samples(self._endpoint.chat(asked.body | fields), n, self.vocabulary))

        return self._run(prompts, settings.rounds, self.settings.max_parallel, ask, more)

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, at_once: int
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """The likeliest-token answer of each prompt (section 4.1), as they finish. Raises as `sample`."""

        def ask(asked: _Asked, first: int, n: int) -> Outcome:
            reply = self._endpoint.chat(asked.body | greedy_fields(max_new_tokens))
            return [read_answer(reply, self.vocabulary)]

        for index, found in self._run(prompts, (1,), min(at_once, self.settings.max_parallel), ask):
            yield index, found if isinstance(found, Failure) else found[0]

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...] | None:
        """The prompt's token ids as the server reads it; None where it doesn't tell. Raises as the endpoint does."""
        return read_prompt_ids(self._endpoint.chat(self._body(prompt) | greedy_fields(1)))

    def _run(
        self,
        prompts: Sequence[Prompt],
        rounds: Sequence[int],
        at_once: int,
        ask: Callable[[_Asked, int, int], Outcome],
        more: More | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """`ask(asked, first, n)` gives the outcomes of samples first to first + n - 1."""
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="generator")
        coming = iter(enumerate(prompts))
        queue: deque[tuple[_Asked, int, int]] = deque()
        out: dict[Future[Outcome], tuple[_Asked, int, int]] = {}
        # Prompts that got nothing usable wait for the next that does: an outage is no fault of theirs.
        lost: list[_Asked] = []
        try:
            while True:
                while len(out) < at_once:
                    if not queue:
                        started = self._start(coming)
                        if started is None:
                            break
                        if isinstance(started[1], Failure):
                            yield started
                            continue
                        queue += self._begin_round(started[1], rounds)
                    asked, first, count = queue.popleft()
                    asked.out += 1
                    out[pool.submit(ask, asked, first, count)] = (asked, first, count)
                if not out:
                    yield from (asked.failed() for asked in lost)
                    return
                finished, given_up = [], []
                for future in wait(out, return_when=FIRST_COMPLETED).done:
                    asked, first, count = out.pop(future)
                    asked.out -= 1
                    missing = self._take(future, asked, first, count)
                    if asked.failure:
                        queue = deque(item for item in queue if item[0] is not asked)
                    else:
                        queue.extendleft(reversed(self._chunks(asked, missing)))
                    if asked.complete:
                        finished.append(asked)
                    elif asked.failure and not asked.out:
                        given_up.append(asked)
                if finished:
                    yield from (asked.failed() for asked in lost)
                    lost = []
                going = _going(finished, len(rounds), more)
                for asked in finished:
                    if asked.index in going:
                        queue += self._begin_round(asked, rounds)
                    else:
                        yield asked.index, asked.found
                yield from (asked.failed() for asked in given_up if asked.own_fault)
                lost += [asked for asked in given_up if not asked.own_fault]
                if len(lost) >= OUTAGE:
                    said = f"gave nothing usable for {len(lost)} prompts in a row, the last: {lost[-1].failure}"
                    raise EndpointError(self._endpoint.failure(said))
        finally:
            # A request in flight can't be called back; waiting for it would hold up the error, or the reader's end.
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, coming: Iterator[tuple[int, Prompt]]) -> tuple[int, _Asked | Failure] | None:
        """The next prompt, its image encoded; None when there is none left."""
        index, prompt = next(coming, (0, None))
        if prompt is None:
            return None
        try:
            render(self.vocabulary, prompt)
            body = self._body(prompt)
        except PromptError as error:
            return index, Failure(str(error))
        except OSError as error:
            return index, Failure(str(PromptError(prompt, f"the image can't be decoded: {error}")))
        return index, _Asked(index, prompt, body)

    def _body(self, prompt: Prompt) -> dict:
        image = self._data_url(prompt.image_path)
        return prompt_fields(self.settings, self._model, self.vocabulary, prompt, image)

    def _encode(self, path: Path) -> str:
        self.counts.images_encoded += 1
        return data_url(path)

    def _begin_round(self, asked: _Asked, rounds: Sequence[int]) -> list[tuple[_Asked, int, int]]:
        first, size = len(asked.found), rounds[asked.rounds]
        asked.rounds += 1
        asked.found += [None] * size
        asked.tries += [0] * size
        return self._chunks(asked, range(first, first + size))

    def _chunks(self, asked: _Asked, samples: Sequence[int]) -> list[tuple[_Asked, int, int]]:
        """The requests that ask for these samples: runs of neighbours, for their seeds are, cut to what is given."""
        runs: list[list[int]] = []
        for k in samples:
            fits = runs and runs[-1][-1] + 1 == k and (self._at_most is None or len(runs[-1]) < self._at_most)
            if fits:
                runs[-1].append(k)
            else:
                runs.append([k])
        return [(asked, run[0], len(run)) for run in runs]

    def _take(self, future: "Future[Outcome]", asked: _Asked, first: int, count: int) -> list[int]:
        """Notes what a request gave; returns the samples to ask for again."""
        try:
            found = future.result()
        except Refused as error:
            asked.failure, asked.own_fault = f"the server refuses it: {str(error)[:MESSAGE_LENGTH]}", True
            return []
        except Unanswered as error:
            asked.failure = f"the server {error.what}"
            return []
        except UnusableReply as error:
            found = [str(error)] * count
        self._note_shortness(count, sum(one is not None for one in found))
        missing = []
        for k, one in enumerate(found, start=first):
            if one is None:
                missing.append(k)
            elif isinstance(one, str):
                asked.tries[k] += 1
                if asked.tries[k] >= TRIES:
                    asked.failure = f"sample {k}, tried {TRIES} times: {self._endpoint.without_key(one)}"
                    return []
                missing.append(k)
            else:
                asked.found[k] = one
        self.counts.choices_asked_again += len(missing)
        return missing

    def _note_shortness(self, asked_for: int, returned: int) -> None:
        """A server that gives too few choices twice running caps them: from then on it is asked for no more."""
        if returned < asked_for:
            self._short_replies, self._cap = self._short_replies + 1, returned
            if self._short_replies == 2:
                self._at_most = self._cap
        elif asked_for > self._cap:
            self._short_replies = 0

    def _sent(self) -> None:
        with self._lock:
            self.counts.requests += 1

    def _load_adapter(self, adapter: Adapter) -> None:
        try:
            self._endpoint.post("/load_lora_adapter", {"lora_name": self._model, "lora_path": str(adapter.folder)})
        except Refused as error:
            # The name holds the adapter's fingerprint: what goes by it is this adapter.
            if "already been loaded" not in error.said:
                raise EndpointError(
                    self._endpoint.failure(f"does not load the adapter {self._model}: {error}")
                ) from None


def _going(finished: Sequence[_Asked], rounds: int, more: More | None) -> set[int]:
    """The indices of those prompts, each with a round finished, that get another."""
    could = [asked for asked in finished if asked.rounds < rounds]
    if more is None or not could:
        return {asked.index for asked in could}
    goes_on = more([(asked.index, list(asked.found)) for asked in could])
    return {asked.index for asked, yes in zip(could, goes_on, strict=True) if yes}
