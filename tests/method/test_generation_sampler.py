"""Sampling against transformers' own generate, its counts, and what it does with prompts that can't be read."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.samples import Failure, prompt_seed
from m3po_dagster.method.generation.settings import ModelSettings, SamplingSettings
from m3po_dagster.method.prompt import Message
from tests.sampling import answer_greedily, sample


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


def inputs_of(loaded, prompt):
    text = loaded.processor.apply_chat_template(prompt.chat(), tokenize=False, add_generation_prompt=True)
    return loaded.processor(text=text, images=prompt.open_image(), return_tensors="pt", add_special_tokens=False)


def generate(loaded, plain, prompt, **kwargs):
    """Token ids of each returned sequence by transformers' generate, cut after the end of sequence."""
    import torch

    inputs = inputs_of(loaded, prompt)
    with torch.inference_mode():
        rows = plain.generate(**inputs, suppress_tokens=list(loaded.suppressed), **kwargs)
    rows = rows[:, inputs["input_ids"].shape[1] :].tolist()
    eos = plain.generation_config.eos_token_id
    return [tuple(row[: row.index(eos) + 1] if eos in row else row) for row in rows]


@pytest.mark.parametrize(
    ("n", "temperature", "top_p"), [(32, 0.7, 0.9), (5, 1.3, 1.0), (1, 1.0, 0.5)], ids=["paper", "no top-p", "single"]
)
def test_samples_are_those_of_generate(loaded, plain, prompts, n, temperature, top_p):
    import torch

    settings = SamplingSettings(n=n, temperature=temperature, top_p=top_p, max_new_tokens=60, prompts_per_batch=4)
    seeds = [prompt_seed(0, prompt.prompt_id, n) for prompt in prompts]
    found = sample(loaded, prompts, settings, seeds)
    for prompt, seed, samples in zip(prompts, seeds, found, strict=True):
        torch.manual_seed(seed)
        expected = generate(
            loaded,
            plain,
            prompt,
            do_sample=True,
            num_return_sequences=n,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_new_tokens=60,
        )
        assert [one.token_ids for one in samples] == expected
    everything = [one for samples in found for one in samples]
    for one in everything:
        assert (one.finish_reason == "stop") == (one.token_ids[-1] in loaded.eos) == (one.eos_logp is not None)
        assert len(one.token_logps) == len(one.token_ids)
        assert one.text == loaded.tokenizer.decode(one.token_ids, skip_special_tokens=True).strip()
    if n == 32:
        assert {one.finish_reason for one in everything} == {"stop", "length"}


def test_samples_depend_on_prompt_and_seed_alone(loaded, prompts):
    settings = SamplingSettings(n=6, max_new_tokens=40, prompts_per_batch=5)
    seeds = [prompt_seed(3, prompt.prompt_id, 6) for prompt in prompts]
    together = sample(loaded, prompts, settings, seeds)
    backwards = sample(loaded, prompts[::-1], settings, seeds[::-1])[::-1]
    alone = [sample(loaded, [prompt], settings, [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    for others in (backwards, alone):
        for ours, theirs in zip(together, others, strict=True):
            assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
            assert [one.sum_logp for one in ours] == pytest.approx([one.sum_logp for one in theirs], abs=1e-4)
    assert len({one.token_ids for samples in together for one in samples}) > 25
    other = sample(loaded, prompts[:1], settings, [seeds[0] + 1])[0]
    assert [one.token_ids for one in other] != [one.token_ids for one in together[0]]


def test_prompts_leaving_early_disturb_no_stream(loaded, prompts):
    """With two rows a prompt, whole prompts leave while others have both rows, or only their second, still running."""
    crowd = [replace(prompt, prompt_id=f"{prompt.prompt_id}/{i}") for i in range(3) for prompt in prompts]
    settings = SamplingSettings(n=2, max_new_tokens=100, temperature=1.5, top_p=1, prompts_per_batch=len(crowd))
    seeds = [prompt_seed(1, prompt.prompt_id, 2) for prompt in crowd]
    counts = Counts()
    together = sample(loaded, crowd, settings, seeds, counts)
    alone = [sample(loaded, [prompt], settings, [seed])[0] for prompt, seed in zip(crowd, seeds, strict=True)]
    assert [[one.token_ids for one in samples] for samples in together] == [
        [one.token_ids for one in samples] for samples in alone
    ]
    assert counts.decode_rows < 2 * len(crowd) * counts.decode_forwards


def test_model_does_each_prompt_once(loaded, prompts):
    """Counted twice: by the sampler itself and by hooks on the model's own parts."""
    seen = {"images": 0, "prefill": 0, "decode": 0, "rows": 0}

    def vision(module, args, kwargs):
        seen["images"] += len(args[0] if args else kwargs["pixel_values"])

    def language(module, args, kwargs):
        rows, length = kwargs["inputs_embeds"].shape[:2]
        seen["prefill" if length > 1 else "decode"] += 1
        seen["rows"] += rows if length == 1 else 0

    model = loaded.model.model
    hooks = [
        model.vision_tower.register_forward_pre_hook(vision, with_kwargs=True),
        model.language_model.register_forward_pre_hook(language, with_kwargs=True),
    ]
    counts, n, length = Counts(), 16, 50
    settings = SamplingSettings(n=n, max_new_tokens=length, prompts_per_batch=2)
    try:
        found = sample(loaded, prompts, settings, range(5), counts)
    finally:
        for hook in hooks:
            hook.remove()
    assert counts.images_encoded == seen["images"] == 5
    assert counts.prefill_forwards == seen["prefill"] == 3
    assert counts.prefill_tokens == sum(inputs_of(loaded, prompt)["input_ids"].numel() for prompt in prompts)
    longest = [max(len(one.token_ids) for samples in found[i : i + 2] for one in samples) for i in (0, 2, 4)]
    # The first token comes from the prefill, and the last one is never read.
    assert counts.decode_forwards == seen["decode"] == sum(longest) - 3
    assert counts.decode_rows == seen["rows"]
    sampled = sum(len(one.token_ids) - 1 for samples in found for one in samples)
    assert (
        sampled
        <= counts.decode_rows
        < n * sum((rows * (steps_ - 1)) for rows, steps_ in zip((2, 2, 1), longest, strict=True))
    )


def test_placeholders_are_never_sampled(loaded, prompts):
    tokenizer = loaded.tokenizer
    assert set(loaded.suppressed) == {
        tokenizer.convert_tokens_to_ids(token) for token in ("<pad>", "<s>", "<unk>", "<image>")
    }
    hot = SamplingSettings(n=64, temperature=100, top_p=1, max_new_tokens=20)
    drawn = {token for one in sample(loaded, prompts[:1], hot, [0])[0] for token in one.token_ids}
    assert drawn == set(range(len(tokenizer))) - set(loaded.suppressed)


def test_greedy_answers_are_those_of_generate_and_share_images(loaded, plain, prompts):
    asked = [
        replace(prompt, prompt_id=f"{i}", image_path=prompts[i % 2].image_path) for i, prompt in enumerate(prompts)
    ]
    counts = Counts()
    answers = answer_greedily(loaded, asked, max_new_tokens=30, at_once=4, counts=counts)
    expected = [generate(loaded, plain, prompt, do_sample=False, max_new_tokens=30)[0] for prompt in asked]
    assert [answer.token_ids for answer in answers] == expected
    assert counts.images_encoded == 2 + 1


def test_unreadable_prompts_fail_alone(loaded, prompts, tmp_path):
    data = prompts[0].image_path.read_bytes()
    files = {"text.png": b"no image", "cut.png": data[: len(data) // 2], "empty.png": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    broken = [replace(prompts[0], prompt_id=f"bad-{name}", image_path=tmp_path / name) for name in (*files, "none.png")]
    broken.append(replace(prompts[0], prompt_id="bad-two", messages=(Message("user", "What is <image> here?"),)))
    broken.append(replace(prompts[0], prompt_id="bad-long", messages=(Message("user", "what " * 600),)))
    settings = SamplingSettings(n=3, max_new_tokens=5, prompts_per_batch=4)
    mixed = [prompts[0], *broken[:3], *broken[3:], prompts[1]]
    found = sample(loaded, mixed, settings, [7] * len(mixed))
    for prompt, failure in zip(broken, found[1:-1], strict=True):
        assert isinstance(failure, Failure)
        assert prompt.prompt_id in failure.reason
        assert str(prompt.image_path) in failure.reason
    healthy = sample(loaded, prompts[:2], settings, [7, 7])
    assert [[one.token_ids for one in samples] for samples in (found[0], found[-1])] == [
        [one.token_ids for one in samples] for samples in healthy
    ]
    assert isinstance(answer_greedily(loaded, broken, 5, 3)[0], Failure)


def test_an_image_only_the_processor_refuses_fails_alone(loaded, prompts, monkeypatch):
    """An image without pixels decodes, and the real processor can't resize it."""
    from PIL import Image

    from m3po_dagster.method.prompt import Prompt

    decode = Prompt.open_image
    monkeypatch.setattr(
        Prompt, "open_image", lambda self: Image.new("RGB", (0, 5)) if self.prompt_id == "flat" else decode(self)
    )
    found = sample(
        loaded,
        [prompts[0], replace(prompts[1], prompt_id="flat"), prompts[2]],
        SamplingSettings(n=2, max_new_tokens=3),
        [1, 2, 3],
    )
    assert isinstance(found[1], Failure)
    assert "flat" in found[1].reason
    assert "processor" in found[1].reason
    assert len(found[0]) == len(found[2]) == 2


def test_an_answer_ends_where_the_positions_end(loaded, prompts):
    spare = loaded.context - inputs_of(loaded, prompts[0])["input_ids"].numel()
    words = " ".join(["what"] * (spare - 3))
    long = replace(prompts[0], messages=(Message("user", f"{prompts[0].question} {words}"),))
    assert inputs_of(loaded, long)["input_ids"].numel() == loaded.context - 3
    found = sample(loaded, [long, prompts[1]], SamplingSettings(n=8, max_new_tokens=12), [0, 1])
    assert max(len(one.token_ids) for one in found[0]) == 3
    assert max(len(one.token_ids) for one in found[1]) == 12


def test_seeds_and_prompts_must_match(loaded, prompts):
    with pytest.raises(ValueError, match="5 prompts need as many seeds, not 1"):
        sample(loaded, prompts, SamplingSettings(), [0])


@given(st.integers(0, 2**31), st.text(), st.text(), st.integers(1, 1024))
def test_prompt_seeds_leave_room_for_n(base, one, other, n):
    seed = prompt_seed(base, one, n)
    assert 0 <= seed < 2**63
    assert seed % n == 0
    assert prompt_seed(base, one, n) == seed
    assert one == other or abs(prompt_seed(base, other, n) - seed) >= n


def test_prompt_seeds_are_the_same_in_every_process():
    code = "from m3po_dagster.method.generation.samples import prompt_seed; print(prompt_seed(1, 'café', 32))"
    seeds = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert seeds == {f"{prompt_seed(1, 'café', 32)}\n".encode()}


def test_imports_stay_cheap():
    code = (
        "import sys; from m3po_dagster.method import confidence;"
        "from m3po_dagster.method.generation import adaptive, candidates, continuations, decode, diversity, encoding;"
        "from m3po_dagster.method.generation import engine, failures, full_path, memory, model, placement, prefill;"
        "from m3po_dagster.method.generation import rows, sampler, self_check, shared_prefix, special_tokens;"
        "print(sorted({'torch', 'transformers', 'dagster', 'peft'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 0},
        {"n": 1025},
        {"temperature": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
        {"engine": "vllm"},
    ],
)
def test_bad_sampling_settings_are_refused(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SamplingSettings(**bad)
