"""Examples, settings and batches: what is refused, and that sampled token ids reach the trainer as they are."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.optimization.examples import PreferenceExample
from m3po_dagster.method.optimization.settings import DpoSettings, LoraSettings, SftSettings
from m3po_dagster.method.prompt import Message, Prompt

PROMPT = Prompt("p", Path("image.png"), (Message("user", "What is it?"),))
EXAMPLE = PreferenceExample("pair-1", PROMPT, (5, 2), (6, 7), -1.0, -2.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"chosen_ids": ()}, "pair pair-1: chosen_ids is empty"),
        ({"rejected_ids": ()}, "pair pair-1: rejected_ids is empty"),
        ({"ref_chosen_logp": float("nan")}, "pair pair-1: ref_chosen_logp is nan"),
        ({"ref_rejected_logp": float("-inf")}, "pair pair-1: ref_rejected_logp is -inf"),
        ({"ref_rejected_logp": None}, "pair pair-1: rejected_ids and ref_rejected_logp belong together"),
        ({"rejected_ids": None}, "pair pair-1: rejected_ids and ref_rejected_logp belong together"),
    ],
)
def test_a_bad_example_names_its_pair(change, match):
    with pytest.raises(ValueError, match=match):
        replace(EXAMPLE, **change)


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (DpoSettings, {"beta": 0}, "beta"),
        (DpoSettings, {"learning_rate": -1e-5}, "learning_rate"),
        (DpoSettings, {"warmup_ratio": 1}, "warmup_ratio"),
        (DpoSettings, {"nll_weight": -1}, "nll_weight"),
        (DpoSettings, {"kind": "sft"}, "kind"),
        (SftSettings, {"beta": 0.1}, "beta"),
        (SftSettings, {"schedule": "stairs"}, "schedule"),
        (LoraSettings, {"r": 0}, "r"),
        (LoraSettings, {"dropout": 1}, "dropout"),
    ],
)
def test_a_bad_setting_is_refused(kind, values, field):
    with pytest.raises(ValidationError) as caught:
        kind(**values)
    assert caught.value.errors()[0]["loc"] == (field,)


def test_the_defaults_are_the_papers():
    dpo, sft = DpoSettings(), SftSettings()
    for one in (dpo, sft):
        assert (one.batch_size, one.learning_rate, one.warmup_ratio, one.epochs) == (8, 5e-5, 0.05, 1)
    assert dpo.beta == 0.1


@pytest.fixture(scope="module")
def model_and_prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    model = load_model(ModelSettings(path=str(tiny_llava(folder / "model")), device="cpu"))
    return model, tiny_prompts(folder / "images", 4)


# No id is the image placeholder (4); most sequences are no text's tokens.
ANSWER = st.lists(st.integers(5, 40), min_size=1, max_size=9).map(tuple)


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(ANSWER, ANSWER), min_size=1, max_size=4), data=st.data())
def test_sampled_ids_reach_the_trainer_unchanged(model_and_prompts, pairs, data):
    from m3po_dagster.method.optimization.batches import Batches

    loaded, prompts = model_and_prompts
    processor = loaded.processor
    examples = [
        PreferenceExample(str(i), prompts[i], chosen, rejected, -float(i), -10.0 - i)
        for i, (chosen, rejected) in enumerate(pairs)
    ]
    order = data.draw(st.permutations(range(len(examples))))
    picked = [examples[i] for i in order]
    batches = Batches(loaded, examples)
    batch = batches.preference([{"row": i} for i in order])
    assert batch["rows"].tolist() == list(order)
    assert batch["ref_chosen_logps"].tolist() == [example.ref_chosen_logp for example in picked]
    assert batch["ref_rejected_logps"].tolist() == [example.ref_rejected_logp for example in picked]
    answers = [example.chosen_ids for example in picked] + [example.rejected_ids for example in picked]
    for row, (example, answer) in enumerate(zip(picked * 2, answers, strict=True)):
        text = processor.apply_chat_template(example.prompt.chat(), tokenize=False, add_generation_prompt=True)
        alone = processor(
            images=[example.prompt.open_image()], text=[text], add_special_tokens=False, return_tensors="pt"
        )
        prompt_ids = alone["input_ids"][0].tolist()
        own = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][own].tolist() == [*prompt_ids, *answer]
        assert batch["input_ids"][row][batch["completion_mask"][row].bool()].tolist() == list(answer)
        assert own.tolist() == sorted(own.tolist(), reverse=True), "padding is on the right"
        assert (batch["pixel_values"][row] == alone["pixel_values"][0]).all()
    supervised = batches.supervised([{"row": i} for i in order])
    for row, example in enumerate(picked):
        labels = supervised["labels"][row]
        assert labels[labels != -100].tolist() == list(example.chosen_ids)
        assert (labels[labels != -100] == supervised["input_ids"][row][labels != -100]).all()
