"""Padding moves to the left and nothing else changes; a conversation reads as its processor wants it."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import tiny_llava, tiny_prompts

from m3po_dagster.method.generation.encoding import PromptError, encode, process, render
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.prompt import Message, Prompt

PAD = 99


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(ModelSettings(path=str(tiny_llava(tmp_path_factory.mktemp("llava"))), device="cpu"))


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=4))
def test_padding_moves_to_the_left_wherever_it_was(masks):
    """Some processors pad right, and BLIP's put the image before the padding: the hole is in the middle."""
    import torch
    from transformers import BatchFeature

    mask = torch.tensor(masks).long()
    ids = torch.arange(mask.numel()).view_as(mask)
    per_image = ids[..., None, None].expand(-1, -1, 2, 3)
    pixels = torch.rand(len(masks), 3, 4, 4)
    given_ = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": ids % 5, "pixel_values": pixels}

    def grow(outputs, kwargs, is_encoder_decoder):
        """What a model does that has a mask over images too."""
        grows = ("attention_mask", "mm_token_type_ids", "cross_attention_mask")
        return {name: torch.cat([x, x[:, -1:]], dim=1) if name in grows else x for name, x in kwargs.items()}

    fake = SimpleNamespace(
        processor=lambda **kwargs: BatchFeature({**given_, "cross_attention_mask": per_image}),
        tokenizer=SimpleNamespace(bos_token=None, pad_token_id=PAD),
        model=SimpleNamespace(_update_model_kwargs_for_generation=grow),
        is_encoder_decoder=False,
        dtype=torch.float32,
    )
    found = process(fake, ["text"] * len(masks), [None] * len(masks))
    assert torch.equal(found["pixel_values"], pixels)
    for row, own in enumerate(mask.bool()):
        width = int(own.sum())
        assert found["attention_mask"][row].tolist() == [0] * (6 - width) + [1] * width
        assert found["input_ids"][row].tolist() == [PAD] * (6 - width) + ids[row][own].tolist()
        assert found["mm_token_type_ids"][row, 6 - width :].tolist() == (ids[row][own] % 5).tolist()
        assert torch.equal(found["cross_attention_mask"][row, 6 - width :], per_image[row][own])
        assert not found["cross_attention_mask"][row, : 6 - width].any()


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("user", "What is it?")], "What is it?"),
        (
            [("user", "Is it red?"), ("assistant", "No."), ("user", "What then?")],
            "Question: Is it red? Answer: No. Question: What then? Answer:",
        ),
        ([("system", "Be brief."), ("user", "What is it?")], "Be brief. Question: What is it? Answer:"),
    ],
)
def test_without_a_chat_template_the_question_is_plain(messages, text, tmp_path):
    prompt = Prompt("one", tmp_path / "none.png", tuple(Message(*message) for message in messages))
    fake = SimpleNamespace(placeholders=("<image>",), processor=SimpleNamespace(chat_template=None))
    assert render(fake, prompt) == text


def test_a_template_that_refuses_or_leaves_the_image_out_is_named(loaded, tmp_path):
    (prompt,) = tiny_prompts(tmp_path, 1)
    template = loaded.processor.chat_template
    try:
        loaded.processor.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(PromptError, match=r"prompt prompt-0 .*chat template refuses.*roles must alternate"):
            render(loaded, prompt)
        loaded.processor.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
        found = encode(loaded, [prompt])
    finally:
        loaded.processor.chat_template = template
    assert found.inputs is None
    assert "prompt-0" in str(found.errors[0])
    assert encode(loaded, [prompt]).kept == [0]
