"""A language model with an encoder (BLIP-2 on T5) samples and scores by the paths that are right for any model."""

import pytest
from zoo import ENCODER_DECODER, family
from zoo.images import write_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.families.oracle import inputs_of
from tests.sampling import answer_greedily, sample

SETTINGS = SamplingSettings(n=4, temperature=1.2, top_p=0.95, max_new_tokens=16, prompts_per_batch=2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = family(ENCODER_DECODER, tmp_path_factory.mktemp(ENCODER_DECODER))
    return load_model(ModelSettings(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("images"))


def generated(loaded, prompt, **kwargs):
    import torch

    with torch.inference_mode():
        rows = loaded.model.generate(
            **inputs_of(loaded.processor, prompt), suppress_tokens=list(loaded.suppressed), top_k=0, **kwargs
        )
    # The decoder's start token comes first.
    rows = [row[1:] for row in rows.tolist()]
    return [tuple(row[: row.index(loaded.eos[0]) + 1] if loaded.eos[0] in row else row) for row in rows]


def test_samples_are_those_of_generate(loaded, prompts):
    import torch

    assert loaded.paths.sampling == "generate"
    assert "encoder-decoder" in loaded.paths.reasons[0]
    counts = Counts()
    found = sample(loaded, prompts, SETTINGS, range(5), counts)
    for seed, (prompt, samples) in enumerate(zip(prompts, found, strict=True)):
        torch.manual_seed(seed)
        assert [one.token_ids for one in samples] == generated(
            loaded,
            prompt,
            do_sample=True,
            num_return_sequences=SETTINGS.n,
            temperature=SETTINGS.temperature,
            top_p=SETTINGS.top_p,
            max_new_tokens=SETTINGS.max_new_tokens,
        )
    lengths = [inputs_of(loaded.processor, prompt)["input_ids"].numel() for prompt in prompts]
    assert (counts.images_encoded, counts.prefill_forwards, counts.prefill_tokens) == (5, 5, sum(lengths))
    answers = answer_greedily(loaded, prompts, 8, 2)
    assert [one.token_ids for one in answers] == [
        generated(loaded, prompt, do_sample=False, max_new_tokens=8)[0] for prompt in prompts
    ]


def test_scores_are_those_of_the_decoder(loaded, prompts):
    import torch

    assert loaded.paths.scoring == "full-forward"
    samples = sample(loaded, prompts[:2], SETTINGS, range(2))
    for prompt, drawn in zip(prompts, samples, strict=False):
        found = score_continuations(loaded, prompt, [one.token_ids for one in drawn])
        for one, scored in zip(drawn, found, strict=True):
            answer = torch.tensor([one.token_ids])
            # With labels the model itself shifts the answer behind the start token.
            with torch.inference_mode():
                logits = loaded.model(**inputs_of(loaded.processor, prompt), labels=answer).logits
            expected = logits[0].double().log_softmax(dim=-1).gather(1, answer.T)[:, 0]
            assert one.token_logps == pytest.approx(expected.tolist(), abs=5e-4)
            assert scored.token_logps == pytest.approx(expected.tolist(), abs=5e-4)
            assert scored.ended == (one.finish_reason == "stop")
