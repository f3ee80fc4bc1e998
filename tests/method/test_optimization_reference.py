"""P_ref scored again: the base model's own log-probs, whatever was stored, at a prefill and a forward a pair."""

import pytest
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.reference import rescored


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(ModelSettings(path=str(tiny_llava(tmp_path_factory.mktemp("llava"))), device="cpu"))


def oracle(loaded, prompt, ids) -> float:
    """One full forward of transformers over prompt and answer."""
    import torch

    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    inputs = loaded.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)
    whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    with torch.inference_mode():
        logits = loaded.model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0]
    logps = logits[-len(ids) - 1 : -1].log_softmax(dim=-1)
    return logps.gather(1, torch.tensor(ids)[:, None]).sum().item()


def test_what_was_stored_is_replaced_by_the_models_own(loaded, tmp_path):
    prompts = tiny_prompts(tmp_path, 3)
    examples = [
        PreferenceExample("a", prompts[0], (7, 8, 9, 2), (10, 2), -1.0, -2.0),
        PreferenceExample("b", prompts[1], (11, 12), (13, 14, 15), -1.0, -2.0),
        PreferenceExample("sft", prompts[2], (16, 17, 2), None, -1.0, None),
    ]
    told = []
    found, counts = rescored(loaded, examples, lambda done, total: told.append((done, total)))
    for before, after in zip(examples, found, strict=True):
        assert (after.pair_id, after.prompt, after.chosen_ids) == (before.pair_id, before.prompt, before.chosen_ids)
        assert after.ref_chosen_logp == pytest.approx(oracle(loaded, after.prompt, after.chosen_ids), abs=1e-3)
        if before.rejected_ids is None:
            assert after.ref_rejected_logp is None
        else:
            assert after.ref_rejected_logp == pytest.approx(oracle(loaded, after.prompt, after.rejected_ids), abs=1e-3)
    assert (counts.prefill_forwards, counts.scoring_forwards) == (3, 3)
    assert told == [(1, 3), (2, 3), (3, 3)]
