"""Every family of the zoo samples what transformers' own generate samples, and its model does each prompt once."""

from collections import Counter
from dataclasses import replace

import pytest
from zoo import FAMILIES, MORE

from m3po_dagster.method.generation.encoding import encode
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.generation.sampler import TransformersEngine
from m3po_dagster.method.generation.samples import Failure, prompt_seed
from m3po_dagster.method.generation.settings import ModelSettings, RoundSettings, SamplingSettings
from m3po_dagster.method.prompt import Message
from tests.families.oracle import full_forward, generated, inputs_of, open_family
from tests.sampling import answer_greedily, in_order, sample

SETTINGS = SamplingSettings(n=6, temperature=1.5, top_p=0.98, max_new_tokens=24, prompts_per_batch=3)
# Neither keeps every token of a prompt in every layer: a window of them, the state of a convolution. In Llama 3.2
# Vision some layers keep an image instead, which no row adds to.
EXPANDED = ("gemma3", "lfm2_vl", "mllama")
# One image is one tensor and its features don't depend on the question: prompts on one image share them.
SHARES_IMAGES = ("llava", "gemma3", "paligemma")


@pytest.fixture(scope="module", params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def zoo(request, tmp_path_factory):
    return open_family(request.param, tmp_path_factory.mktemp(request.param))


def seeds_of(zoo, n=SETTINGS.n):
    return [prompt_seed(0, prompt.prompt_id, n) for prompt in zoo.prompts]


def ending(zoo):
    """The same family where a tenth of the vocabulary ends an answer: with random weights, one token seldom does."""
    loaded = replace(zoo.loaded, eos=(*zoo.loaded.eos, *range(100, 136)))
    loaded.__dict__["paths"] = zoo.loaded.paths
    return replace(zoo, loaded=loaded)


def by_path(loaded, path):
    """The same model, sampling by `path`."""
    other = replace(loaded)
    other.__dict__["paths"] = replace(loaded.paths, sampling=path)
    return other


def test_the_path_is_the_fastest_that_is_right(zoo, caplog):
    fresh = replace(zoo.loaded)
    with caplog.at_level("INFO", logger="m3po_dagster.method.generation.self_check"):
        paths = fresh.paths
    said = [record.getMessage() for record in caplog.records]
    assert paths.sampling == ("expanded-cache" if zoo.name in EXPANDED else "shared-prefix")
    assert any(f"samples by {paths.sampling} and scores by {paths.scoring}" in line for line in said)
    assert bool(paths.reasons) == (zoo.name in EXPANDED)
    for reason in paths.reasons:
        assert any(reason in line for line in said)
    assert fresh.numerics == "transformers/float32"


def test_the_check_costs_a_few_forwards_once(zoo):
    fresh, calls = replace(zoo.loaded), Counter()
    hook = zoo.loaded.model.get_decoder().register_forward_pre_hook(lambda *_: calls.update(forwards=1))
    try:
        forwards = fresh.paths.check_forwards
        assert calls["forwards"] == forwards <= 48
        assert fresh.paths.check_forwards == calls["forwards"]
    finally:
        hook.remove()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_takes_the_same_paths(zoo, dtype):
    loaded = load_model(ModelSettings(path=str(zoo.folder), device="cpu", dtype=dtype))
    assert (loaded.paths.sampling, loaded.paths.scoring) == (zoo.loaded.paths.sampling, zoo.loaded.paths.scoring)
    assert loaded.precision == dtype
    samples = sample(loaded, zoo.prompts[:1], SETTINGS, [0])[0]
    for one in samples[:2]:
        assert one.token_logps == pytest.approx(full_forward(zoo, zoo.prompts[0], one.token_ids), abs=0.3)


def test_samples_are_those_of_generate(zoo):
    import torch

    zoo, seeds = ending(zoo), seeds_of(zoo)
    found = sample(zoo.loaded, zoo.prompts, SETTINGS, seeds)
    kinds = Counter()
    for prompt, seed, samples in zip(zoo.prompts, seeds, found, strict=True):
        torch.manual_seed(seed)
        expected = generated(
            zoo,
            prompt,
            do_sample=True,
            num_return_sequences=SETTINGS.n,
            temperature=SETTINGS.temperature,
            top_p=SETTINGS.top_p,
            top_k=0,
            max_new_tokens=SETTINGS.max_new_tokens,
        )
        assert [one.token_ids for one in samples] == expected
        kinds.update(one.finish_reason for one in samples)
        for one in samples:
            assert (one.finish_reason == "stop") == (one.token_ids[-1] in zoo.loaded.eos)
            assert not set(one.token_ids) & set(zoo.loaded.suppressed)
    assert kinds["stop"]
    assert kinds["length"]


def test_recorded_log_probs_are_those_of_a_plain_forward(zoo):
    found = sample(zoo.loaded, zoo.prompts, SETTINGS, seeds_of(zoo))
    for prompt, samples in zip(zoo.prompts, found, strict=True):
        for one in samples[:3]:
            expected = full_forward(zoo, prompt, one.token_ids)
            assert one.token_logps == pytest.approx(expected, abs=5e-4)
            assert one.sum_logp == pytest.approx(sum(expected), abs=1e-3)


@pytest.mark.parametrize(
    "path", ["", *(pytest.param(path, marks=pytest.mark.slow) for path in ("expanded-cache", "generate"))]
)
def test_rounds_go_on_from_one_reading_and_a_prompt_that_leaves_changes_no_other(zoo, path):
    loaded = by_path(zoo.loaded, path) if path else zoo.loaded
    rounds = SETTINGS.model_copy(update={"n": RoundSettings(first=2, step=2, max=6), "prompts_per_batch": 5})
    seeds, whole, counts = seeds_of(zoo), Counts(), Counts()
    expected = sample(loaded, zoo.prompts, rounds, seeds, whole)
    for drawn in (0, 2, 4):
        alone = sample(loaded, zoo.prompts, SETTINGS.model_copy(update={"n": 2}), [seed + drawn for seed in seeds])
        assert [[one.token_ids for one in some[drawn : drawn + 2]] for some in expected] == [
            [one.token_ids for one in some] for some in alone
        ]

    def more(drawn):
        return [len(samples) < 2 + 2 * (i % 3) for i, samples in drawn]

    found = in_order(TransformersEngine(loaded, counts).sample(zoo.prompts, rounds, seeds, more))
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert len(ours) == 2 + 2 * (i % 3)
        assert [one.token_ids for one in ours] == [one.token_ids for one in theirs[: len(ours)]]
    if loaded.paths.sampling != "generate":
        assert counts.prefill_tokens == whole.prefill_tokens
        assert counts.images_encoded == whole.images_encoded


@pytest.mark.parametrize("path", ["expanded-cache", "generate"])
def test_a_slower_path_gives_the_same_samples(zoo, path):
    seeds = seeds_of(zoo)
    found = sample(zoo.loaded, zoo.prompts, SETTINGS, seeds)
    counts = Counts()
    slower = sample(by_path(zoo.loaded, path), zoo.prompts, SETTINGS, seeds, counts)
    for ours, theirs in zip(found, slower, strict=True):
        assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
        assert [one.finish_reason for one in ours] == [one.finish_reason for one in theirs]
        assert [one.sum_logp for one in ours] == pytest.approx([one.sum_logp for one in theirs], abs=1e-3)
    read = sum(inputs_of(zoo.loaded.processor, prompt)["input_ids"].numel() for prompt in zoo.prompts)
    assert counts.prefill_tokens == read * (SETTINGS.n if path == "generate" else 1)


def test_greedy_answers_are_those_of_generate(zoo):
    answers = answer_greedily(zoo.loaded, zoo.prompts, max_new_tokens=12, at_once=3)
    expected = [generated(zoo, prompt, do_sample=False, max_new_tokens=12)[0] for prompt in zoo.prompts]
    assert [answer.token_ids for answer in answers] == expected


def test_the_model_does_each_prompt_once(zoo):
    """Counted twice: by the sampler itself and by hooks on the model's own parts."""
    loaded, model, seen = zoo.loaded, zoo.loaded.model, Counter()
    pixels = sum(encode(loaded, zoo.prompts[i : i + 3]).inputs["pixel_values"].numel() for i in (0, 3))
    again = encode(loaded, zoo.prompts[3:4]).inputs["pixel_values"].numel()

    def tower(module, args, kwargs):
        seen["pixels"] += (args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))).numel()

    def language(module, args, kwargs):
        ids = kwargs.get("inputs_embeds")
        rows, length = (kwargs["input_ids"] if ids is None else ids).shape[:2]
        seen["prefill" if length > 1 else "decode"] += 1
        seen["rows"] += rows if length == 1 else 0

    def qformer(module, args, kwargs):
        seen["qformer"] += kwargs["query_embeds"].shape[0]

    hooks = [
        model.get_encoder(modality="image").register_forward_pre_hook(tower, with_kwargs=True),
        model.get_decoder().register_forward_pre_hook(language, with_kwargs=True),
    ]
    if hasattr(model, "qformer"):
        hooks.append(model.qformer.register_forward_pre_hook(qformer, with_kwargs=True))
    assert loaded.paths
    seen.clear()
    counts = Counts()
    # The fourth prompt looks at the first's image: with it in one batch.
    order = [0, 3, 1, 2, 4]
    try:
        found = sample(loaded, [zoo.prompts[i] for i in order], SETTINGS, range(5), counts)
    finally:
        for hook in hooks:
            hook.remove()
    shared = zoo.name in SHARES_IMAGES
    assert counts.images_encoded == 5 - shared
    # Some pad a batch's images to the most tiles, and leave that padding out before the tower.
    pads_tiles = zoo.name in ("llava_next", "idefics3", "smolvlm", "lfm2_vl")
    assert seen["pixels"] <= pixels if pads_tiles else seen["pixels"] == pixels - shared * again
    assert counts.prefill_forwards == seen["prefill"] == 2
    assert seen["qformer"] == (5 if zoo.name in ("instructblip", "blip_2") else 0)
    lengths = [inputs_of(loaded.processor, prompt)["input_ids"].numel() for prompt in zoo.prompts]
    assert counts.prefill_tokens == sum(lengths)
    longest = [max(len(one.token_ids) for samples in found[i : i + 3] for one in samples) for i in (0, 3)]
    # The first token comes from the prefill, and the last one is never read.
    assert counts.decode_forwards == seen["decode"] == sum(longest) - 2
    assert counts.decode_rows == seen["rows"]


def test_finished_rows_leave_the_batch_and_disturb_no_other(zoo):
    loaded, seeds, counts = ending(zoo).loaded, seeds_of(zoo, 16)[:3], Counts()
    settings = SamplingSettings(n=16, temperature=20, top_p=1, max_new_tokens=40)
    together = sample(loaded, zoo.prompts[:3], settings, seeds, counts)
    lengths = [len(one.token_ids) - 1 for samples in together for one in samples]
    assert sum(lengths) <= counts.decode_rows < 0.9 * 3 * settings.n * max(lengths)
    alone = [sample(loaded, [zoo.prompts[i]], settings, seeds[i : i + 1])[0] for i in range(3)]
    assert [[one.token_ids for one in samples] for samples in together] == [
        [one.token_ids for one in samples] for samples in alone
    ]


def test_every_end_of_sequence_ends_an_answer(zoo):
    hot = SamplingSettings(n=256, temperature=100, top_p=1, max_new_tokens=6)
    drawn = [one.token_ids for one in sample(zoo.loaded, zoo.prompts[:1], hot, [0])[0]]
    assert {token for ids in drawn for token in ids if token in zoo.loaded.eos} == set(zoo.loaded.eos)
    assert not {token for ids in drawn for token in ids[:-1]} & set(zoo.loaded.eos)
    assert not {token for ids in drawn for token in ids} & set(zoo.loaded.suppressed)
    assert len(zoo.loaded.eos) == (2 if zoo.name == "gemma3" else 1)


def test_a_prompt_reads_the_same_in_a_batch_as_alone(zoo):
    """Padded on the left, its own tokens those of the processor on it alone; also where the batch pads tiles."""
    inputs = encode(zoo.loaded, zoo.prompts).inputs
    for ids, mask, prompt in zip(inputs["input_ids"], inputs["attention_mask"], zoo.prompts, strict=True):
        alone = inputs_of(zoo.loaded.processor, prompt)["input_ids"][0]
        assert ids[mask.bool()].tolist() == alone.tolist()
        assert mask.tolist() == [0] * (len(mask) - len(alone)) + [1] * len(alone)
    assert len({int(mask.sum()) for mask in inputs["attention_mask"]}) == len(zoo.prompts)


def test_a_published_generation_config_changes_nothing(zoo, tmp_path):
    """Checkpoints come with beams, penalties and lengths; the study says how samples are drawn."""
    import json
    import shutil

    folder = shutil.copytree(zoo.folder, tmp_path / "model")
    published = json.loads((folder / "generation_config.json").read_text())
    published |= {"num_beams": 3, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "max_length": 40}
    published |= {"do_sample": True, "temperature": 0.2, "top_k": 3, "min_length": 5, "num_return_sequences": 2}
    (folder / "generation_config.json").write_text(json.dumps(published))
    loaded = load_model(ModelSettings(path=str(folder), device="cpu"))
    assert loaded.paths == zoo.loaded.paths
    expected = sample(zoo.loaded, zoo.prompts[:2], SETTINGS, [0, 1])
    assert sample(loaded, zoo.prompts[:2], SETTINGS, [0, 1]) == expected
    slow = sample(by_path(loaded, "generate"), zoo.prompts[:2], SETTINGS, [0, 1])
    assert [[one.token_ids for one in samples] for samples in slow] == [
        [one.token_ids for one in samples] for samples in expected
    ]


def test_an_image_is_seen_upright(zoo, tmp_path):
    """A camera's file may hold the picture on its side, and say so."""
    import torch
    from PIL import Image

    wide = zoo.prompts[4]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(wide.image_path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "on-its-side.png", exif=exif)
    turned = replace(wide, image_path=tmp_path / "on-its-side.png")
    upright, seen = (encode(zoo.loaded, [prompt]).inputs for prompt in (wide, turned))
    assert set(seen) == set(upright)
    for name in seen:
        assert torch.equal(seen[name], upright[name]), name


def test_an_image_placeholder_in_the_text_is_refused(zoo):
    assert zoo.loaded.placeholders
    for placeholder in zoo.loaded.placeholders:
        asked = Message("user", f"Is {placeholder} red?")
        prompts = [zoo.prompts[0], replace(zoo.prompts[1], prompt_id="two", messages=(asked,))]
        found = sample(zoo.loaded, prompts, SamplingSettings(n=2, max_new_tokens=2), [0, 0])
        assert isinstance(found[1], Failure)
        assert "two" in found[1].reason
        assert placeholder in found[1].reason
        assert len(found[0]) == 2


def test_earlier_turns_and_the_image_move_the_answers(zoo):
    """Else no test here could see a turn that was dropped or an image that reached the wrong row."""
    turns, odd = zoo.prompts[4], zoo.prompts[0]
    changed = [
        replace(turns, messages=turns.messages[2:]),
        replace(turns, messages=(turns.messages[0], Message("assistant", "Yes, two."), turns.messages[2])),
        replace(turns, image_path=odd.image_path),
    ]
    answers = [sample(zoo.loaded, [prompt], SETTINGS, [1])[0] for prompt in (turns, *changed)]
    logps = [tuple(one.sum_logp for one in samples) for samples in answers]
    assert len(set(logps)) == 4
