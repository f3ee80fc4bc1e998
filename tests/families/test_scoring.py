"""Every family scores given answers as one plain forward an answer does, over a prompt that is read once."""

from collections import Counter
from dataclasses import replace

import pytest
from zoo import FAMILIES, MORE

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.prefill import Counts
from tests.families.oracle import full_forward, inputs_of, open_family

# As in sampling; in Llama 3.2 Vision one row can't hold several answers, since each of its tokens must see the image.
EXPANDED = ("gemma3", "lfm2_vl", "mllama")
LENGTHS = (7, 1, 12, 3, 2)


@pytest.fixture(scope="module", params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def zoo(request, tmp_path_factory):
    return open_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def answers(zoo):
    """Answers from elsewhere: tokens at random, some with the end of sequence."""
    import torch

    generator = torch.Generator().manual_seed(1)
    barred = {*zoo.loaded.suppressed, *zoo.loaded.eos}
    words = torch.tensor([i for i in range(len(zoo.loaded.tokenizer)) if i not in barred])
    drawn = [words[torch.randint(len(words), (length,), generator=generator)].tolist() for length in LENGTHS]
    return [tuple(tokens + [zoo.loaded.eos[0]] * (i % 2)) for i, tokens in enumerate(drawn)]


@pytest.fixture(scope="module")
def expected(zoo, answers):
    return [[full_forward(zoo, prompt, answer) for answer in answers] for prompt in zoo.prompts]


def by_path(loaded, path):
    """The same model, scoring by `path`."""
    other = replace(loaded)
    other.__dict__["paths"] = replace(loaded.paths, scoring=path)
    return other


@pytest.mark.parametrize("path", ["own", "expanded-cache", "full-forward"])
def test_scores_are_those_of_a_plain_forward(zoo, answers, expected, path):
    loaded = zoo.loaded if path == "own" else by_path(zoo.loaded, path)
    assert zoo.loaded.paths.scoring == ("expanded-cache" if zoo.name in EXPANDED else "packed")
    for prompt, plain in zip(zoo.prompts, expected, strict=True):
        found = score_continuations(loaded, prompt, answers, group=3)
        for scored, logps, answer in zip(found, plain, answers, strict=True):
            assert scored.token_logps == pytest.approx(logps, abs=5e-4)
            assert scored.sum_logp == pytest.approx(sum(logps), abs=1e-3)
            assert scored.ended == (answer[-1] in zoo.loaded.eos)
            assert scored.eos_logp == (scored.token_logps[-1] if scored.ended else None)


def test_the_prompt_is_read_once(zoo, answers):
    """Counted twice: by the scorer itself and by hooks on the language model and its head."""
    loaded, prompt, seen = zoo.loaded, zoo.prompts[1], Counter()
    model = loaded.model

    def language(module, args, kwargs):
        ids = kwargs.get("inputs_embeds")
        rows, length = (kwargs["input_ids"] if ids is None else ids).shape[:2]
        seen["forwards"] += 1
        seen["tokens"] += rows * length

    def head(module, args):
        seen["rows of the head"] += args[0].shape[:-1].numel()

    hooks = [
        model.get_decoder().register_forward_pre_hook(language, with_kwargs=True),
        model.get_output_embeddings().register_forward_pre_hook(head),
    ]
    assert loaded.paths
    seen.clear()
    counts = Counts()
    try:
        score_continuations(loaded, prompt, answers, group=2, counts=counts)
    finally:
        for hook in hooks:
            hook.remove()
    read = inputs_of(loaded.processor, prompt)["input_ids"].numel()
    groups = [[len(answer) - 1 for answer in answers[i : i + 2]] for i in (0, 2, 4)]
    scored = sum(len(some) * max(some) if zoo.name in EXPANDED else sum(some) for some in groups)
    assert (counts.images_encoded, counts.prefill_forwards, counts.scoring_forwards) == (1, 1, 3)
    assert (counts.prefill_tokens, counts.scoring_tokens) == (read, scored)
    assert seen["forwards"] == 4
    assert seen["tokens"] == read + scored
    assert seen["rows of the head"] == 1 + scored


def test_the_image_moves_the_scores(zoo, answers):
    """Else no test here could see an image that was left out."""
    one = score_continuations(zoo.loaded, zoo.prompts[0], answers)
    other = score_continuations(zoo.loaded, replace(zoo.prompts[0], image_path=zoo.prompts[2].image_path), answers)
    assert all(abs(a.sum_logp - b.sum_logp) > 2e-3 for a, b in zip(one, other, strict=True))
