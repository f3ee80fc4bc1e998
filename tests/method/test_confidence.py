"""Confidence: recorded while sampling == rescored in packed groups == one plain full forward an answer."""

from dataclasses import replace

import pytest
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.encoding import PromptError
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.sampling import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(ModelSettings(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def plain(folder):
    """The same weights as transformers loads them, untouched by this project."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return tiny_prompts(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture(scope="module")
def sampled(loaded, prompts):
    settings = SamplingSettings(n=32, max_new_tokens=40, prompts_per_batch=3)
    return sample(loaded, prompts, settings, range(len(prompts)))


def full_forward(loaded, plain, prompt, token_ids):
    """Log-prob of each token: the whole sequence through the model at once, no cache, no packing."""
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)
    answer = torch.tensor([token_ids])
    start = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    with torch.inference_mode():
        logits = plain(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits
    return logits[0, start - 1 : -1].double().log_softmax(dim=-1).gather(1, answer[0][:, None])[:, 0].tolist()


def test_recorded_and_rescored_equal_a_full_forward(loaded, plain, prompts, sampled):
    shares = 0
    for prompt, samples in zip(prompts, sampled, strict=True):
        rescored = score_continuations(loaded, prompt, [one.token_ids for one in samples])
        for one, scored in list(zip(samples, rescored, strict=True))[::4]:
            expected = full_forward(loaded, plain, prompt, one.token_ids)
            for found in (one, scored):
                assert found.token_logps == pytest.approx(expected, abs=1e-4)
                assert found.sum_logp == pytest.approx(sum(expected), abs=1e-4)
                if one.finish_reason == "stop":
                    assert found.eos_logp == pytest.approx(expected[-1], abs=1e-4)
                    shares += 1
                else:
                    assert found.eos_logp is None
    assert shares > 6


@pytest.mark.parametrize("group", [1, 3, 32])
def test_group_size_changes_nothing(loaded, prompts, sampled, group):
    answers = [one.token_ids for one in sampled[0]][:9]
    answers[4] = answers[4][:1]
    expected = score_continuations(loaded, prompts[0], answers)
    found = score_continuations(loaded, prompts[0], answers, group=group)
    for one, other in zip(found, expected, strict=True):
        assert one.token_logps == pytest.approx(other.token_logps, abs=1e-4)
        assert one.ended == other.ended


def test_prompt_is_read_once_and_answers_once(loaded, prompts, sampled):
    answers = [one.token_ids for one in sampled[1]]
    counts = Counts()
    score_continuations(loaded, prompts[1], answers, counts=counts)
    assert (counts.images_encoded, counts.prefill_forwards, counts.scoring_forwards) == (1, 1, 4)
    assert counts.scoring_tokens == sum(len(answer) - 1 for answer in answers)
    assert counts.decode_forwards == 0


def test_packing_saves_floating_point_operations(loaded, plain, prompts, sampled):
    from torch.utils.flop_counter import FlopCounterMode

    answers = [one.token_ids[:20] for one in sampled[0]]
    with FlopCounterMode(display=False) as packed:
        score_continuations(loaded, prompts[0], answers)
    with FlopCounterMode(display=False) as full:
        for answer in answers:
            full_forward(loaded, plain, prompts[0], answer)
    assert full.get_total_flops() > 5 * packed.get_total_flops()


def test_unusable_input_is_named(loaded, prompts, tmp_path):
    with pytest.raises(ValueError, match=f"{prompts[0].prompt_id}: continuation 1 has no tokens"):
        score_continuations(loaded, prompts[0], [[5, 6], []])
    missing = replace(prompts[0], image_path=tmp_path / "none.png")
    with pytest.raises(PromptError, match=r"none\.png"):
        score_continuations(loaded, missing, [[5, 6]])
    assert score_continuations(loaded, prompts[0], []) == []
