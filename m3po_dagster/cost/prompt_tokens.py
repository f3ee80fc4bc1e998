"""Tokens that a model's own processor makes of a prompt beside its text: the image and the chat template."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from m3po_dagster.cost.estimate import Workload
from m3po_dagster.cost.model_facts import folder_of
from m3po_dagster.method.generation.settings import ModelSettings

SIZES = 8
"""Different image sizes that are tried: models that tile an image take more tokens for a larger one."""
_QUESTION = "What is in the image?"


def tokens_beside_text(model: ModelSettings, sizes: Sequence[tuple[int, int]]) -> float | None:
    """Mean tokens of image and template over images of these sizes (pixels); None where the model is not at hand.

    Blank images go through the processor itself; no weight is loaded. `sizes` are those of a sample, in its order;
    without any, 640 x 480 stands for them.
    """
    folder = folder_of(model)
    if folder is None:
        return None
    from PIL import Image

    from m3po_dagster.method.generation.vocabulary import load_vocabulary
    from m3po_dagster.method.prompt import Message, Prompt

    try:
        vocabulary = load_vocabulary(model.model_copy(update={"path": str(folder), "revision": None}))
    except (FileNotFoundError, ValueError, ImportError):
        return None
    text = len(vocabulary.tokenizer(_QUESTION, add_special_tokens=False)["input_ids"])
    lengths = []
    with tempfile.TemporaryDirectory(prefix="m3po-tokens-") as blank:
        for number, size in enumerate(dict.fromkeys(sizes or [(640, 480)])):
            if number == SIZES:
                break
            path = Path(blank) / f"{number}.png"
            Image.new("RGB", size).save(path)
            prompt = Prompt(str(number), path, (Message("user", _QUESTION),))
            lengths.append(len(vocabulary.prompt_ids(prompt)) - text)
    return fmean(lengths)


def with_own_tokens(work: Workload, model: ModelSettings) -> Workload:
    """The workload with the tokens beside the text as the model's own processor makes them, where it is at hand."""
    return replace(work, beside_text=tokens_beside_text(model, work.sizes))
