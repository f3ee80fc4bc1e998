"""On a LLaVA with 576 image tokens: floating-point operations and language-model tokens against the plain ways."""

import pytest
from torch.utils.flop_counter import FlopCounterMode
from zoo.images import write_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.families.llava_576 import IMAGE_TOKENS, llava_576
from tests.families.oracle import Zoo, full_forward, inputs_of
from tests.sampling import sample

N = 32


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    folder = llava_576(tmp_path_factory.mktemp("llava-576"))
    loaded = load_model(ModelSettings(path=str(folder), device="cpu"))
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return Zoo("llava", folder, loaded, plain, write_prompts(folder / "images"))


def test_scoring_needs_a_ninth_of_the_operations_of_full_forwards(zoo):
    prompt = zoo.prompts[0]
    settings = SamplingSettings(n=N, max_new_tokens=16)
    answers = [one.token_ids for one in sample(zoo.loaded, [prompt], settings, [0])[0]]
    assert zoo.loaded.paths.scoring == "packed"
    with FlopCounterMode(display=False) as packed:
        scored = score_continuations(zoo.loaded, prompt, answers)
    with FlopCounterMode(display=False) as full:
        expected = [full_forward(zoo, prompt, answer) for answer in answers]
    inputs = inputs_of(zoo.loaded.processor, prompt)
    with FlopCounterMode(display=False) as image:
        zoo.plain.get_image_features(inputs["pixel_values"])
    assert [one.sum_logp for one in scored] == pytest.approx([sum(logps) for logps in expected], abs=1e-3)
    # The image's encoding is left out of all full forwards but one: it could be kept.
    once = full.get_total_flops() - (N - 1) * image.get_total_flops()
    assert once >= 9 * packed.get_total_flops()


def test_a_prompt_is_read_once_for_all_its_samples(zoo):
    """Against `generate`, whose language model reads it N times; by the tokens that reach the language model."""
    prompt, tokens = zoo.prompts[0], {"ours": 0, "generate": 0}
    settings = SamplingSettings(n=N, max_new_tokens=4)

    def counter(name):
        def count(module, args, kwargs):
            rows, length = kwargs["inputs_embeds"].shape[:2]
            tokens[name] += rows * length

        return count

    assert zoo.loaded.paths.sampling == "shared-prefix"
    hooks = [
        zoo.loaded.model.get_decoder().register_forward_pre_hook(counter("ours"), with_kwargs=True),
        zoo.plain.get_decoder().register_forward_pre_hook(counter("generate"), with_kwargs=True),
    ]
    counts = Counts()
    try:
        sample(zoo.loaded, [prompt], settings, [0], counts)
        inputs = inputs_of(zoo.loaded.processor, prompt)
        zoo.plain.generate(**inputs, do_sample=True, num_return_sequences=N, max_new_tokens=4)
    finally:
        for hook in hooks:
            hook.remove()
    length = inputs["input_ids"].numel()
    assert length > IMAGE_TOKENS
    assert counts.prefill_tokens == length
    assert tokens["ours"] == length + counts.decode_rows <= length + 3 * N
    assert tokens["generate"] >= N * length
