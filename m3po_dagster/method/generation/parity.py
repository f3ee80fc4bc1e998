"""Do two engines agree? Nats a token between what a server says of its samples and what the model here says of them.

Engines differ by more than rounding: another attention kernel, another image resize, a chat template rendered in
another way. On prompts with images 0.2 nat a token is common, and delta of section 3.5 is 0.1. So it is measured on a
sample of the study's own prompts before a server is trusted with all of them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, TypeVar

from pydantic import ValidationError

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.encoding import PromptError
from m3po_dagster.method.generation.engine import Engine
from m3po_dagster.method.generation.generator_settings import GeneratorSettings, ServerSettings
from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import Failure, Sample, prompt_seed
from m3po_dagster.method.generation.served import ServedEngine
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from m3po_dagster.method.generation.vocabulary import load_vocabulary
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.settings import Settings

Kind = TypeVar("Kind", bound=Settings)

POSITIONS = ((0, 0), (1, 3), (4, 15), (16, 63), (64, None))
"""First and last position, from 0, of the ranges that differences are told for."""
PROBE = {"temperature": 0.5, "top_p": 0.8}
"""What is sampled with beside a study that samples at temperature 1: only there raw and scaled log-probs are one."""
PLAIN = {"temperature": 1.0, "top_p": 1.0}
SCALED = 0.02
"""Nats a token by which log-probs must differ more away from temperature 1 to look scaled."""


@dataclass(frozen=True)
class Scored:
    """A sample, and its tokens' log-probs by the engine that drew it and by the model here."""

    prompt_id: str
    k: int
    sample: Sample
    own: tuple[float, ...]

    @property
    def differences(self) -> list[float]:
        """Engine minus here, nats, by token."""
        return [theirs - mine for theirs, mine in zip(self.sample.token_logps, self.own, strict=True)]


def parity(
    engine: Engine,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    answer_tokens: int,
) -> dict[str, Any]:
    """Samples the prompts from `engine` and scores the same ids with `loaded`; everything found, as JSON values.

    `differences` are of the study's own sampling settings; `raw` says whether the engine's log-probs are those at
    temperature 1, by a second sampling at other settings; `greedy` compares likeliest-token answers of at most
    `answer_tokens` tokens; `prompt tokens`, of a server, which prompts
    it reads as other ids; `failed` names the prompts that gave nothing. Raises what the engine raises.
    """
    other = PROBE if settings.temperature == 1 and settings.top_p == 1 else PLAIN
    scored, failed = _scored(engine, loaded, prompts, settings)
    probed, _ = _scored(engine, loaded, prompts, settings.model_copy(update=other))
    return {
        "engine numerics": engine.numerics,
        "local numerics": loaded.numerics,
        "prompts": len(prompts),
        "failed": failed,
        "samples": len(scored),
        "differences": differences(scored),
        "by position": by_position(scored),
        "worst": worst(scored),
        "raw": _raw(settings, scored, other, probed),
        "end of sequence": end_of_sequence([one.sample for one in scored]),
        "greedy": greedy(engine, loaded, prompts, answer_tokens),
        "prompt tokens": prompt_tokens(engine, [prompt for prompt in prompts if prompt.prompt_id not in failed])
        if isinstance(engine, ServedEngine)
        else None,
    }


def _scored(
    engine: Engine, loaded: LoadedModel, prompts: Sequence[Prompt], settings: SamplingSettings
) -> tuple[list[Scored], dict[str, str]]:
    seeds = [prompt_seed(settings.seed, prompt.prompt_id, settings.n) for prompt in prompts]
    scored, failed = [], {}
    for index, samples in engine.sample(prompts, settings, seeds):
        prompt = prompts[index]
        if isinstance(samples, Failure):
            failed[prompt.prompt_id] = samples.reason
            continue
        try:
            own = score_continuations(loaded, prompt, [sample.token_ids for sample in samples])
        except PromptError as error:
            failed[prompt.prompt_id] = str(error)
            continue
        pairs = enumerate(zip(samples, own, strict=True))
        scored += [Scored(prompt.prompt_id, k, sample, score.token_logps) for k, (sample, score) in pairs]
    return scored, failed


def differences(scored: Sequence[Scored]) -> dict[str, Any]:
    """Absolute differences in nats a token: mean, median, 95th percentile, largest; and the signed mean (`bias`).

    `answer mean`: the largest absolute difference of an answer's mean log-prob a token, which is what selection uses.
    """
    signed = [difference for one in scored for difference in one.differences]
    if not signed:
        return {"tokens": 0, "mean": None, "median": None, "p95": None, "max": None, "bias": None, "answer mean": None}
    sizes = sorted(abs(difference) for difference in signed)
    return {
        "tokens": len(sizes),
        "mean": fmean(sizes),
        "median": median(sizes),
        "p95": sizes[math.ceil(0.95 * len(sizes)) - 1],
        "max": sizes[-1],
        "bias": fmean(signed),
        "answer mean": max(abs(fmean(one.differences)) for one in scored),
    }


def by_position(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Mean absolute difference by where in the answer a token stands: a prompt read in another way shows at once."""
    rows = []
    for first, last in POSITIONS:
        sizes = [abs(d) for one in scored for d in one.differences[first : None if last is None else last + 1]]
        if sizes:
            rows.append({"from": first, "to": last, "tokens": len(sizes), "mean": fmean(sizes), "max": max(sizes)})
    return rows


def worst(scored: Sequence[Scored]) -> dict[str, Any] | None:
    """The token that differs most."""
    places = [(abs(d), one, place) for one in scored for place, d in enumerate(one.differences)]
    if not places:
        return None
    size, one, place = max(places, key=lambda item: item[0])
    return {
        "prompt": one.prompt_id,
        "sample": one.k,
        "position": place,
        "token": one.sample.token_ids[place],
        "engine": one.sample.token_logps[place],
        "here": one.own[place],
        "difference": size,
    }


def _raw(
    settings: SamplingSettings, scored: Sequence[Scored], other: dict[str, float], probed: Sequence[Scored]
) -> dict[str, Any]:
    """Raw log-probs don't know how they were sampled; scaled ones agree with this model at temperature 1 alone."""
    mine = {"temperature": settings.temperature, "top_p": settings.top_p}
    at = {"plain": probed, "changed": scored} if other == PLAIN else {"plain": scored, "changed": probed}
    means = {name: differences(some)["mean"] for name, some in at.items()}
    verdict = "unknown"
    if None not in means.values():
        # Scaling moves log-probs by tenths of a nat; engines that differ do so at either temperature.
        verdict = "scaled" if means["changed"] > 2 * means["plain"] + SCALED else "raw"
    return {
        "verdict": verdict,
        "mean at temperature 1": means["plain"],
        "mean elsewhere": means["changed"],
        "elsewhere": mine if other == PLAIN else other,
    }


def end_of_sequence(samples: Sequence[Sample]) -> dict[str, int]:
    """How many answers ended by themselves, and of how many the end is in ids and log-probs."""
    stopped = [sample for sample in samples if sample.finish_reason == "stop"]
    return {"ended": len(stopped), "reported": sum(sample.has_eos for sample in stopped)}


def greedy(engine: Engine, loaded: LoadedModel, prompts: Sequence[Prompt], tokens: int) -> dict[str, Any]:
    """How many likeliest-token answers are the same in text, and in ids where the engine gives them."""
    theirs, mine = (_answers(one.answer(prompts, tokens, 8)) for one in (engine, TransformersEngine(loaded)))
    both = sorted(set(theirs) & set(mine))
    told = [i for i in both if theirs[i].token_ids is not None]
    return {
        "compared": len(both),
        "same text": sum(theirs[i].text == mine[i].text for i in both),
        "with ids": len(told),
        "same ids": sum(tuple(theirs[i].token_ids) == mine[i].token_ids for i in told),
        "ids agree up to": [_common(theirs[i].token_ids, mine[i].token_ids) for i in told],
    }


def _answers(given: Iterable[tuple[int, Any]]) -> dict[int, Any]:
    return {index: answer for index, answer in given if not isinstance(answer, Failure)}


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def prompt_tokens(engine: ServedEngine, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Which prompts the server reads as other ids than the processor here; `compared` 0 where it doesn't say."""
    compared, different = 0, []
    for prompt in prompts:
        theirs = engine.prompt_ids(prompt)
        if theirs is None:
            continue
        compared += 1
        mine = engine.vocabulary.prompt_ids(prompt)
        if theirs != mine:
            different.append({"prompt": prompt.prompt_id, "engine": len(theirs), "here": len(mine)})
    return {"compared": compared, "different": different}


def verdict(found: dict[str, Any], tolerance: float) -> list[str]:
    """What is wrong, a sentence each; empty when the engines agree within `tolerance` nat a token (mean)."""
    problems = []
    mean = found["differences"]["mean"]
    if mean is None:
        problems.append("no sample could be compared")
    elif not mean <= tolerance:
        problems.append(f"log-probs differ by {mean:.4f} nat a token on average, {tolerance:g} is allowed")
    if found["raw"]["verdict"] == "scaled":
        problems.append(
            "the log-probs look scaled by the sampling temperature: start vLLM with --logprobs-mode raw_logprobs, "
            "SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1"
        )
    if found["end of sequence"]["reported"] < found["end of sequence"]["ended"]:
        problems.append("the end of sequence is missing from ids and log-probs: it is in no sum, and is not trained")
    if found["prompt tokens"] and found["prompt tokens"]["different"]:
        different = len(found["prompt tokens"]["different"])
        problems.append(f"{different} prompts are read as other token ids: compare chat template and processor")
    if found["failed"]:
        problems.append(
            f"{len(found['failed'])} prompts gave nothing, the first: {next(iter(found['failed'].values()))}"
        )
    return problems


def engine_to_check(
    generator: GeneratorSettings, model: ModelSettings, base_url: str | None, name: str | None, dtype: str | None
) -> Engine:
    """The engine to compare with `model`: the study's server, the one at `base_url`, or the model here in `dtype`.

    Raises ValueError when there is none, or both are asked for; FileNotFoundError when the model can't be found.
    """
    if dtype is not None:
        if base_url is not None or name is not None:
            raise ValueError("give --dtype or a server (--base-url, --model), not both")
        return TransformersEngine(load_model(_checked(ModelSettings, {**model.model_dump(), "dtype": dtype})))
    given = {key: value for key, value in (("base_url", base_url), ("model", name)) if value is not None}
    if generator.kind == "server":
        settings = _checked(ServerSettings, {**generator.model_dump(), **given})
    elif base_url is not None and name is not None:
        settings = _checked(ServerSettings, {**given, "version": "undeclared", "dtype": "undeclared"})
    else:
        raise ValueError(
            "the study's generator is no server: name one with --base-url and --model, or a precision with --dtype"
        )
    return ServedEngine(settings, load_vocabulary(model))


def _checked(kind: type[Kind], given: dict[str, Any]) -> Kind:
    """The settings; raises ValueError without what was given, for an address may hold a key."""
    try:
        return kind(**given)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError("; ".join(problems)) from None
