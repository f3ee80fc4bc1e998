"""A DPO and an SFT step on every family: the log-probs, what is trained, what stays frozen."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from zoo import ENCODER_DECODER, FAMILIES, MORE, family
from zoo.images import write_prompts

from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.dpo import fit_dpo, train_dpo
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.lora import save_adapter
from m3po_dagster.method.optimization.run import TrainingResult
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings, SftSettings
from m3po_dagster.method.optimization.sft import fit_sft, train_sft

# What the families call everything that isn't the language model, and its LM head.
FROZEN = ("vision", "visual", "projector", "connector", "qformer", "language_projection", "lm_head")
# One step: questions of four lengths, one after other turns; images of four sizes, one gray and one with alpha.
PROMPTS = ("odd", "gray", "alpha", "turns")
ANSWER_LENGTHS = {"odd": (3, 7), "gray": (9, 2), "alpha": (5, 5), "turns": (4, 6)}
# How a conversation reads to a processor without a chat template.
TURNS = (
    "Question: Is there a red square in the picture? Answer: No, there is no red square. "
    "Question: How many shapes are there? Answer:"
)
TAKES_NO_ENCODED_IMAGES = ("mllama",)
# Layers in which what lies between two tokens counts: a rejected answer behind a chosen one can't look past that.
GO_BY_PLACE = {"gemma3": "sliding_attention", "lfm2_vl": "conv"}
ONE_STEP = {"batch_size": len(PROMPTS), "learning_rate": 1e-3, "warmup_ratio": 0, "lora": LoraSettings(r=4, alpha=8)}
DPO = DpoSettings(**ONE_STEP, reference_sample=len(PROMPTS), reference_tolerance=1e-4)
SFT = SftSettings(**ONE_STEP)


@dataclass
class World:
    """A family's model in a folder, and a pair a prompt with log-probs from transformers' own `generate`."""

    name: str
    settings: ModelSettings
    examples: list[PreferenceExample]

    def load(self, adapter: Path | None = None) -> LoadedModel:
        return load_model(self.settings, adapter)


@pytest.fixture(scope="module", params=[*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def world(request, tmp_path_factory):
    import torch

    folder = family(request.param, tmp_path_factory.mktemp(request.param) / "model")
    settings = ModelSettings(path=str(folder), device="cpu")
    loaded = load_model(settings)
    prompts = {prompt.prompt_id: prompt for prompt in write_prompts(folder.parent / "images")}
    generator = torch.Generator().manual_seed(0)
    words = [i for i in range(len(loaded.tokenizer)) if i not in loaded.tokenizer.all_special_ids]
    examples = []
    for name in PROMPTS:
        answers = []
        for length in ANSWER_LENGTHS[name]:
            picked = torch.randint(len(words), (length,), generator=generator).tolist()
            answers.append((*(words[i] for i in picked), loaded.tokenizer.eos_token_id))
        logps = [generated_logp(loaded.model, loaded.processor, prompts[name], answer) for answer in answers]
        examples.append(PreferenceExample(f"pair-{name}", prompts[name], *answers, *logps))
    return World(request.param, settings, examples)


def generated_logp(model, processor, prompt, answer: tuple[int, ...], image=None) -> float:
    """log P(answer | I, Q) in nats as transformers' own `generate` has it, one prompt alone, `answer` forced on it."""
    import torch

    image = prompt.open_image() if image is None else image
    if processor.chat_template:
        messages = prompt.chat()
        messages[0]["content"][0]["image"] = image
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    else:
        text = TURNS if prompt.prompt_id == "turns" else prompt.question
        inputs = processor(images=image, text=text, return_tensors="pt")
    forced = iter(answer)

    def force(input_ids, scores):
        return torch.full_like(scores, -math.inf).index_fill(1, torch.tensor([next(forced)]), 0.0)

    output = model.generate(
        **inputs,
        max_new_tokens=len(answer),
        do_sample=False,
        eos_token_id=None,
        logits_processor=[force],
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert output.sequences[0, -len(answer) :].tolist() == list(answer)
    logps = [step[0].double().log_softmax(dim=-1)[token] for step, token in zip(output.logits, answer, strict=True)]
    return sum(logps).item()


def weights(model) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in model.state_dict().items()}


@dataclass
class Run:
    """A DPO step: the model's weights before it, the trainer, what it reports, the adapter's folder."""

    before: dict[str, bytes]
    trainer: object
    result: TrainingResult
    adapter: Path


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    loaded = world.load()
    before = weights(loaded.model)
    # The stored log-probs are those of `generate`: did the trainer's differ by 1e-4, it would refuse them.
    trainer, result = fit_dpo(loaded, world.examples, DPO, seed=0)
    adapter = tmp_path_factory.mktemp("adapter")
    save_adapter(trainer.model, world.settings, adapter)
    return Run(before, trainer, result, adapter)


def test_the_image_moves_every_log_prob(world):
    """Else no test here could see an image that reached the wrong row."""
    loaded = world.load()
    for example, other in zip(world.examples, world.examples[1:] + world.examples[:1], strict=True):
        moved = generated_logp(
            loaded.model, loaded.processor, example.prompt, example.chosen_ids, image=other.prompt.open_image()
        )
        assert abs(moved - example.ref_chosen_logp) > 1e-2


def test_a_dpo_step(run, world):
    assert [row["loss"] for row in run.result.log] == [pytest.approx(math.log(2), abs=1e-5)]
    chosen = [example.ref_chosen_logp for example in world.examples]
    assert run.result.log[0]["chosen_logp"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)
    assert all(row["reward_margin"] > 0 for row in run.result.margins)
    # The check of the reference, the step, the margins: a forward each, over both answers of every pair.
    sequences = 3 * 2 * len(world.examples)
    # An image once as pixels, to be compared, and once for the run.
    images = sequences if world.name in TAKES_NO_ENCODED_IMAGES else 2 * len(world.examples)
    assert run.result.counts == {"language_model_forwards": 3, "sequences": sequences, "images_encoded": images}


@pytest.mark.slow
def test_images_as_they_come_give_the_same(run, world):
    seen = DPO.model_copy(update={"image_features": "never"})
    _, result = fit_dpo(world.load(), world.examples, seen, seed=0)
    assert result.counts["images_encoded"] == result.counts["sequences"]
    assert_same(result, run.result)
    if world.name in TAKES_NO_ENCODED_IMAGES:
        with pytest.raises(ValueError, match=r"image_features always: .* it takes no encoded images; use auto or"):
            fit_dpo(world.load(), world.examples, DPO.model_copy(update={"image_features": "always"}), seed=0)


@pytest.mark.slow
def test_a_pair_as_one_row_gives_the_same(run, world):
    packed = DPO.model_copy(update={"layout": "packed"})
    if world.name in GO_BY_PLACE:
        with pytest.raises(
            ValueError, match=f"layout packed: .* has layers .{GO_BY_PLACE[world.name]}.*use `layout: trl"
        ):
            fit_dpo(world.load(), world.examples, packed, seed=0)
        return
    _, result = fit_dpo(world.load(), world.examples, packed, seed=0)
    assert_same(result, run.result)
    pairs = len(world.examples)
    # The check of the reference in TRL's rows and packed, the step, the margins.
    assert (result.counts["language_model_forwards"], result.counts["sequences"]) == (4, (2 + 1 + 1 + 1) * pairs)


def assert_same(result: TrainingResult, expected: TrainingResult) -> None:
    names = ("reward_margin", "chosen_logp_after", "rejected_logp_after")
    for row, other in zip(result.margins, expected.margins, strict=True):
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-4)
    assert result.log[0]["grad_norm"] == pytest.approx(expected.log[0]["grad_norm"], rel=1e-4)


def test_a_log_prob_that_is_not_the_models_is_refused(world):
    last = world.examples[-1]
    off = [*world.examples[:-1], replace(last, ref_chosen_logp=last.ref_chosen_logp + 5e-4)]
    with pytest.raises(ValueError, match="pair pair-turns, chosen answer"):
        fit_dpo(world.load(), off, DPO, seed=0)


def test_only_the_language_models_linears_are_trained(run):
    import torch

    model = run.trainer.model.base_model.model
    # peft keeps a layer that it adapts under this name beside the adapter.
    linears = {
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    }
    frozen = {name for name in linears if any(part in name for part in FROZEN)}
    assert any("vision" in name or "visual" in name for name in frozen)
    after = {name.replace(".base_layer", ""): weight for name, weight in weights(model).items()}
    lora = {name: weight for name, weight in after.items() if ".lora_" in name}
    assert {name: weight for name, weight in after.items() if name not in lora} == run.before
    adapted = {name.split(".lora_")[0] for name in lora}
    assert adapted == linears - frozen
    assert len(adapted) >= 2 * (4 + 2), "two layers of four attention and two or three feed-forward matrices"
    assert all(any(weight) for name, weight in lora.items() if ".lora_B" in name), "an adapter that stayed 0"
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == lora.keys()


def test_the_adapter_gives_the_log_probs_after_training(run, world):
    loaded = world.load(adapter=run.adapter)
    for row, example in zip(run.result.margins, world.examples, strict=True):
        for answer, ids in (("chosen", example.chosen_ids), ("rejected", example.rejected_ids)):
            logp = generated_logp(loaded.model, loaded.processor, example.prompt, ids)
            assert row[f"{answer}_logp_after"] == pytest.approx(logp, abs=1e-4)
            assert abs(logp - row[f"{answer}_logp_before"]) > 1e-3


def test_gradient_checkpointing_changes_nothing(run, world):
    saving = DPO.model_copy(update={"gradient_checkpointing": True})
    _, result = fit_dpo(world.load(), world.examples, saving, seed=0)
    for name in ("chosen_logp_after", "rejected_logp_after"):
        expected = [row[name] for row in run.result.margins]
        assert [row[name] for row in result.margins] == pytest.approx(expected, abs=1e-4)


def test_a_step_in_half_precision(world):
    settings = world.settings.model_copy(update={"dtype": "bfloat16"})
    # The stored log-probs are float32's, a few tenths of a nat away.
    tolerant = DPO.model_copy(update={"reference_tolerance": 3})
    _, result = fit_dpo(load_model(settings), world.examples, tolerant, seed=0)
    assert result.log[0]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert all(row["reward_margin"] > 0 for row in result.margins)


def test_an_sft_step(world):
    _, result = fit_sft(world.load(), world.examples, SFT, seed=0)
    tokens = sum(len(example.chosen_ids) for example in world.examples)
    nll = -sum(example.ref_chosen_logp for example in world.examples) / tokens
    assert [row["loss"] for row in result.log] == [pytest.approx(nll, abs=1e-4)]
    assert all(row["chosen_logp_after"] > row["chosen_logp_before"] for row in result.margins)


def test_a_language_model_with_an_encoder_is_refused(tmp_path):
    """TRL's trainers read a row as one sequence; a T5's encoder would see the answer that its decoder is to give."""
    settings = ModelSettings(path=str(family(ENCODER_DECODER, tmp_path / "model")), device="cpu")
    example = PreferenceExample("pair", write_prompts(tmp_path / "images")[0], (5, 1), (6, 1), -1.0, -2.0)
    for refused, kind in ((train_dpo, DPO), (train_sft, SFT)):
        with pytest.raises(ValueError, match="Blip2ForConditionalGeneration has an encoder-decoder language model"):
            refused(settings, [example], kind, seed=0, out=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
