"""What does not fit in memory is done in halves, with the same results."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from zoo.images import write_prompts

from m3po_dagster.method.confidence import score_continuations
from m3po_dagster.method.generation.memory import TRY_MORE_AFTER, MemoryLimits
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.samples import Failure
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from tests.families.llava_576 import llava_576
from tests.families.oracle import open_family
from tests.sampling import sample

SETTINGS = SamplingSettings(n=6, temperature=1.5, top_p=0.95, max_new_tokens=10, prompts_per_batch=4)


# Three paths: shared prefix, expanded cache, and, of the first, transformers' own loop.
@pytest.fixture(scope="module", params=["qwen2_5_vl", "gemma3", "qwen2_5_vl-generate"])
def zoo(request, tmp_path_factory):
    name, _, path = request.param.partition("-")
    zoo = open_family(name, tmp_path_factory.mktemp(name))
    # Settled now, while memory suffices.
    paths = zoo.loaded.paths
    if path:
        zoo.loaded.__dict__["paths"] = replace(paths, sampling=path)
    return zoo


class SmallMemory:
    """The language model fails as a GPU would when more than `tokens` tokens of decoding or scoring come at once."""

    def __init__(self, loaded, tokens):
        self.loaded, self.tokens = loaded, tokens

    def __enter__(self):
        import torch

        def check(module, args, kwargs):
            given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
            cache = kwargs.get("past_key_values")
            if cache is not None and cache.get_seq_length() and given.shape[:2].numel() > self.tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        self.hook = self.loaded.model.get_decoder().register_forward_pre_hook(check, with_kwargs=True)
        return replace_limits(self.loaded)

    def __exit__(self, *error):
        self.hook.remove()


def replace_limits(loaded):
    other = replace(loaded, limits=MemoryLimits())
    other.__dict__["paths"] = loaded.paths
    return other


@pytest.mark.parametrize(("rows", "prompts_left", "rows_left"), [(12, 2, None), (6, 1, None), (4, 1, 3), (1, 1, 1)])
def test_samples_are_the_same_in_smaller_batches(zoo, caplog, rows, prompts_left, rows_left):
    expected = sample(zoo.loaded, zoo.prompts, SETTINGS, range(5))
    counts = Counts()
    with SmallMemory(zoo.loaded, rows) as loaded:
        found = sample(loaded, zoo.prompts, SETTINGS, range(5), counts)
        again = Counts()
        assert sample(loaded, zoo.prompts, SETTINGS, range(5), again) == found
    assert [[one.token_ids for one in samples] for samples in found] == [
        [one.token_ids for one in samples] for samples in expected
    ]
    assert [[one.sum_logp for one in samples] for samples in found] == [
        pytest.approx([one.sum_logp for one in samples], abs=1e-3) for samples in expected
    ]
    one_by_one = loaded.paths.sampling == "generate"
    if one_by_one and rows >= SETTINGS.n:
        assert counts.halvings == 0
        return
    assert (loaded.limits.prompts, loaded.limits.rows) == (prompts_left, rows_left)
    assert counts.halvings == len([record for record in caplog.records if "did not fit in memory" in record.message])
    # That path goes prompt by prompt anyway.
    assert counts.halvings == {12: 1, 6: 2, 4: 3, 1: 4}[rows] - 2 * one_by_one
    # What fitted is remembered.
    assert again.halvings == 0


def test_an_answer_that_does_not_fit_alone_fails_its_prompt(zoo):
    with SmallMemory(zoo.loaded, 0) as loaded:
        found = sample(loaded, zoo.prompts[:2], SETTINGS, range(2))
        # What one prompt needed too much of says nothing about the next.
        assert (loaded.limits.prompts, loaded.limits.rows) == (None, None)
    assert all(isinstance(one, Failure) for one in found)
    assert re.fullmatch(
        r"prompt odd \(image .*odd\.jpg\): one answer alone doesn't fit .*quantization.*", found[0].reason
    )


def test_more_is_tried_again_after_a_while():
    limits = MemoryLimits(prompts=1, rows=8)
    for _ in range(TRY_MORE_AFTER - 1):
        limits.note_fit(4, 32)
    assert (limits.prompts, limits.rows) == (1, 8)
    seen = set()
    for _ in range(5 * TRY_MORE_AFTER):
        limits.note_fit(4, 32)
        seen.add((limits.prompts, limits.rows))
    assert {(1, 16), (1, None), (2, None)} <= seen and (limits.prompts, limits.rows) == (None, None)
    limits.halve_sampling(4, 32)
    assert (limits.prompts, limits.fitted) == (2, 0)


def test_a_prompt_that_the_model_fails_on_fails_alone(zoo):
    """Its question has a token for which the model has no embedding."""
    expected = sample(zoo.loaded, zoo.prompts, SETTINGS, range(5))
    zoo.loaded.tokenizer.add_tokens(["unheardof"])
    prompts = list(zoo.prompts)
    question = prompts[2].messages[-1]
    prompts[2] = replace(
        prompts[2], messages=(*prompts[2].messages[:-1], replace(question, text=f"{question.text} unheardof"))
    )
    found = sample(replace_limits(zoo.loaded), prompts, SETTINGS, range(5))
    assert isinstance(found[2], Failure)
    assert prompts[2].prompt_id in found[2].reason and "the model fails on it: IndexError" in found[2].reason
    for i in (0, 1, 3, 4):
        assert [one.token_ids for one in found[i]] == [one.token_ids for one in expected[i]]


def test_scores_are_the_same_in_smaller_groups(zoo):
    answers = [one.token_ids for one in sample(zoo.loaded, zoo.prompts[:1], SETTINGS, [3])[0]]
    expected = score_continuations(zoo.loaded, zoo.prompts[0], answers)
    longest = max(len(answer) for answer in answers) - 1
    with SmallMemory(zoo.loaded, 2 * longest) as loaded:
        counts = Counts()
        found = score_continuations(loaded, zoo.prompts[0], answers, counts=counts)
        assert (loaded.limits.answers, counts.halvings) == (2, 2)
    for one, other in zip(found, expected, strict=True):
        assert one.token_logps == pytest.approx(other.token_logps, abs=5e-4)
    with SmallMemory(zoo.loaded, 0) as loaded, pytest.raises(MemoryError, match="scoring one answer"):
        score_continuations(loaded, zoo.prompts[0], [answer for answer in answers if len(answer) > 1])


REAL = """
import json, resource, sys
from pathlib import Path
import torch
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
sys.path.insert(0, "tests")
from zoo.images import write_prompts
folder, spare = Path(sys.argv[1]), int(sys.argv[2])
engine = TransformersEngine(load_model(ModelSettings(path=str(folder), device="cpu")))
prompts, settings = write_prompts(folder / "images"), SamplingSettings(**json.loads(sys.argv[3]))
list(engine.sample(prompts[:1], settings.model_copy(update={"n": 1}), [0]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
found = sorted(engine.sample(prompts, settings, range(5)))
print(json.dumps([engine.counts.halvings, [[one.token_ids for one in samples] for _, samples in found]]))
"""


@pytest.mark.slow
def test_a_real_allocation_that_fails_is_halved(tmp_path):
    """A process may take 100 MB once the model is loaded; the logits of five prompts' rows, 60,000 each, need more."""
    folder = llava_576(tmp_path, vocab_size=60_000)
    settings = SamplingSettings(n=32, temperature=2, top_p=1, max_new_tokens=3, prompts_per_batch=5)
    counts = Counts()
    loaded = load_model(ModelSettings(path=str(folder), device="cpu"))
    expected = sample(loaded, write_prompts(folder / "images"), settings, range(5), counts)
    assert counts.halvings == 0
    command = [sys.executable, "-c", REAL, str(folder), str(100 * 2**20), settings.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    halvings, samples = json.loads(done.stdout)
    assert halvings > 0
    assert samples == [[list(one.token_ids) for one in drawn] for drawn in expected]
