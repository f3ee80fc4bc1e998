"""Finds the fastest paths that are right for a model: by what it keeps of a prompt, then by trying (section 3.2).

Two prompts of different length on drawn images get an answer each. A path is right when it gives its tokens the
log-probs that one plain forward of the model over prompt and answer gives, as nearly as transformers' own loop does: in
half precision these two differ by hundredths of a nat.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from m3po_dagster.method.generation.continuations import expanded_logps, full_logps, packed_logps
from m3po_dagster.method.generation.decode import Decoded, decode
from m3po_dagster.method.generation.encoding import process, render
from m3po_dagster.method.generation.full_path import generate
from m3po_dagster.method.generation.memory import out_of_memory
from m3po_dagster.method.generation.model import LoadedModel
from m3po_dagster.method.generation.paths import Paths, SamplingPath
from m3po_dagster.method.generation.prefill import Counts, Prefix, read
from m3po_dagster.method.generation.shared_prefix import attend, attention_of
from m3po_dagster.method.prompt import Message, Prompt

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from m3po_dagster.method.generation.decode import Choose

    LogProbs = Sequence[torch.Tensor]

QUESTIONS = ("Is there a circle?", "What is in this image, and where in it is the brightest of its colors?")
ANSWER_LENGTHS = (9, 6)
ROWS = 2
# As a mean over tokens, two right ways differ by a step or two of the precision in a small model, and by about as much
# as two others do in a large one; what is wrong differs by tenths of a nat.
FLOOR, STEPS, TIMES = 1e-4, 4, 3

P = TypeVar("P", bound=str)

_LOG = logging.getLogger(__name__)


def choose_paths(loaded: LoadedModel) -> Paths:
    """The model's paths; says in the log which they are, and why not faster ones."""
    paths = _chosen(loaded)
    name = type(loaded.model).__name__
    _LOG.info(
        "%s samples by %s and scores by %s (%d forwards to check)",
        name,
        paths.sampling,
        paths.scoring,
        paths.check_forwards,
    )
    for reason in paths.reasons:
        _LOG.warning("%s: %s", name, reason)
    return paths


def _chosen(loaded: LoadedModel) -> Paths:
    if loaded.is_encoder_decoder:
        reason = "an encoder-decoder model reads prompt and answer apart, which the faster paths don't do"
        return Paths("generate", "full-forward", (reason,), check_forwards=0)
    counts = Counts()
    try:
        answers = _answers(loaded)
        texts = [render(loaded, Prompt("check", Path("drawn"), (Message("user", text),))) for text in QUESTIONS]
        images = _images()
        alone = [process(loaded, [text], [image]).to(loaded.device) for text, image in zip(texts, images, strict=True)]
        expected = [full_logps(loaded, one, answer, counts) for one, answer in zip(alone, answers, strict=True)]
        looped = [
            _given(generate(loaded, one, range(1), len(answer), _forced(loaded, [answer]), counts), [answer])[0]
            for one, answer in zip(alone, answers, strict=True)
        ]
        first = read(loaded, alone[0])
        both = read(loaded, process(loaded, texts, images).to(loaded.device))
    except Exception as error:  # a model's and a processor's code raise anything; the slow path remains
        if out_of_memory(error):
            raise
        reason = f"what a faster path would give can't be checked: {_line(error)}"
        return Paths("generate", "full-forward", (reason,), _forwards(counts))
    counts.prefill_forwards += 2
    sampling, scoring, reasons = ["expanded-cache"], ["expanded-cache"], []
    if kept := _kept_besides_tokens(first):
        reasons.append(f"its cache keeps {kept}, not every token of the prompt in every layer: rows can't share it")
    else:
        sampling, scoring = ["shared-prefix", *sampling], ["packed", *scoring]
    rounding = _difference(looped, expected)
    tolerance = max(FLOOR, STEPS * step(loaded), TIMES * rounding)

    def right(what: str, path: P, found: "Callable[[], LogProbs]", expected: "LogProbs") -> bool:
        try:
            difference = _difference(found(), expected)
        except Exception as error:  # as above: the next path is tried
            if out_of_memory(error):
                raise
            counts.decode_forwards += 1  # the one that failed
            reasons.append(f"{what} by {path} is not possible: {_line(error)}")
            return False
        if not difference <= tolerance:
            reasons.append(
                f"{what} by {path} differs by {difference:.2g} nat a token from a plain forward, "
                f"transformers' own loop by {rounding:.2g}"
            )
        return difference <= tolerance

    def sampled(path: SamplingPath) -> bool:
        def found() -> "LogProbs":
            if path == "shared-prefix":
                attend(first.language_model)
            chosen, longest = _forced(loaded, answers), max(ANSWER_LENGTHS)
            return _given(decode(loaded, both, range(ROWS), longest, chosen, counts, path), answers)

        return right("sampling", path, found, [one for one in expected for _ in range(ROWS)])

    def fresh() -> Prefix:
        counts.prefill_forwards += 1
        return read(loaded, alone[0])

    def scored(path: str) -> bool:
        score = packed_logps if path == "packed" else expanded_logps
        # The other prompt's answer before it, to be looked past.
        # A prefix of its own: an attempt that fails half way leaves one that is of no use.
        return right("scoring", path, lambda: score(fresh(), answers[::-1], counts)[1:], expected[:1])

    usual = attention_of(first.language_model)
    sampling_path = next((path for path in sampling if sampled(path)), "generate")
    if sampling_path != "shared-prefix" and attention_of(first.language_model) != usual:
        attend(first.language_model, usual)
    scoring_path = next((path for path in scoring if scored(path)), "full-forward")
    return Paths(sampling_path, scoring_path, tuple(reasons), _forwards(counts))


def _kept_besides_tokens(prefix: Prefix) -> str:
    """What layers keep of a prompt other than the keys and values of all its tokens; empty when there is nothing."""
    found = set()
    for layer in prefix.cache.layers:
        if type(layer).__name__ != "DynamicLayer":
            found.add(type(layer).__name__.removeprefix("Dynamic").removesuffix("Layer"))
        elif layer.keys.shape[2] != prefix.attention_mask.shape[1]:
            found.add("CrossAttention")
    return " and ".join(sorted(found))


def _forced(loaded: LoadedModel, answers: Sequence[list[int]]) -> "Choose":
    """Makes each prompt's rows decode its answer; those of a shorter one end, and leave, first."""
    import torch

    longest = max(len(answer) for answer in answers)
    padded = [answer + [loaded.eos[0]] * (longest - len(answer)) for answer in answers]
    steps = iter(torch.tensor(padded, device=loaded.device).T)

    def given(logits: "torch.Tensor", prompt_of: "torch.Tensor", row_of: "torch.Tensor") -> "torch.Tensor":
        return next(steps).to(prompt_of.device)[prompt_of][:, None].expand(row_of.shape)

    return given


def _given(decoded: Decoded, answers: Sequence[list[int]]) -> "LogProbs":
    """The log-probs of the answers' tokens, row after row of each prompt."""
    return [row[: len(answer)] for rows, answer in zip(decoded.token_logps, answers, strict=True) for row in rows]


def _difference(found: "LogProbs", expected: "LogProbs") -> float:
    """Nats a token, the mean over all."""
    import torch

    return float((torch.cat([one.cpu() for one in found]) - torch.cat([one.cpu() for one in expected])).abs().mean())


def _answers(loaded: LoadedModel) -> list[list[int]]:
    """Tokens of text, drawn from a fixed seed: a path that is wrong shows on any."""
    import torch

    barred = {*loaded.suppressed, *loaded.eos}
    words = torch.tensor([i for i in range(len(loaded.tokenizer)) if i not in barred])
    generator = torch.Generator().manual_seed(0)
    return [words[torch.randint(len(words), (length,), generator=generator)].tolist() for length in ANSWER_LENGTHS]


def _images() -> "list[Image.Image]":
    from PIL import Image, ImageDraw

    images = []
    for size, color in (((96, 64), "red"), ((56, 72), "blue")):
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=color)
        images.append(image)
    return images


def step(loaded: LoadedModel) -> float:
    """The relative distance of neighbouring numbers; eight- and four-bit weights are multiplied in half precision."""
    import torch

    return torch.finfo(torch.bfloat16 if "+" in loaded.precision else loaded.dtype).eps


def _forwards(counts: Counts) -> int:
    return counts.prefill_forwards + counts.decode_forwards + counts.scoring_forwards


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
