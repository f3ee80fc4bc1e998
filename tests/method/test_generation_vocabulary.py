"""Pieces back to ids: what a tokenizer of each kind sampled is found again, and nothing is guessed."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llava import tiny_llava, tiny_prompts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from m3po_dagster.method.generation.encoding import render
from m3po_dagster.method.generation.model import load_model
from m3po_dagster.method.generation.settings import ModelSettings
from m3po_dagster.method.generation.vocabulary import Vocabulary, load_vocabulary

TEXTS = ["a red circle is left of a blue square.", "Wie schön — ein roter Kreis!", "\n\ttabs and  spaces", "ありがとう"]


@dataclass
class Processor:
    """As much of a processor as pieces need."""

    tokenizer: Any


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)
    return Vocabulary(Processor(fast), (fast.eos_token_id,), (), ())


@pytest.fixture(scope="module")
def byte_level() -> Vocabulary:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return vocabulary(tokenizer)


@given(text=st.text(max_size=40))
def test_every_text_of_a_byte_level_vocabulary_is_found_again(byte_level, text):
    """Pieces may be halves of a character: only their bytes tell them."""
    raw = byte_level.tokenizer.backend_tokenizer
    ids = raw.encode(text).ids
    by_bytes = {index: piece for piece, found in byte_level._ids_by_bytes.items() for index in found}
    pieces = [by_bytes[index] for index in ids]
    assert b"".join(pieces) == text.encode()
    assert byte_level.ids_of(pieces) == tuple(ids)


def test_the_end_of_sequence_is_a_piece_like_any_other(byte_level):
    assert byte_level.ids_of([b"</s>"]) == byte_level.eos


def test_sentencepiece_spaces_and_byte_pieces():
    entries = {"</s>": 0, "\u2581red": 1, "red": 2, "<0xC3>": 3, "<0xB6>": 4, "\u2581": 5}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="</s>"))
    tokenizer.decoder = decoders.Metaspace()
    found = vocabulary(tokenizer)
    assert found.ids_of([b" red", b"red", "ö".encode()[:1], "ö".encode()[1:], b" "]) == (1, 2, 3, 4, 5)


def test_a_piece_that_no_token_or_two_tokens_have_is_no_id():
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "A": 1, "<0x41>": 2}, unk_token="</s>"))
    tokenizer.decoder = decoders.Metaspace()
    found = vocabulary(tokenizer)
    with pytest.raises(ValueError, match=r"no token of the local vocabulary spell the piece b'B'"):
        found.ids_of([b"B"])
    with pytest.raises(ValueError, match=r"2 tokens of the local vocabulary spell the piece b'A'"):
        found.ids_of([b"A"])


def test_it_knows_without_the_weights_what_the_loaded_model_knows(tmp_path):
    model = ModelSettings(path=str(tiny_llava(tmp_path / "llava")), device="cpu")
    found, loaded = load_vocabulary(model), load_model(model)
    for name in ("eos", "suppressed", "placeholders"):
        assert getattr(found, name) == getattr(loaded, name)
    (prompt,) = tiny_prompts(tmp_path / "images", 1)
    inputs = loaded.processor(
        text=[render(found, prompt)], images=[prompt.open_image()], add_special_tokens=False, return_tensors="pt"
    )
    assert not found.needs_special_tokens(prompt)
    assert found.prompt_ids(prompt) == tuple(inputs["input_ids"][0].tolist())
    (tmp_path / "llava" / "generation_config.json").unlink()
    assert load_vocabulary(model).eos == loaded.eos


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.path .*: a served model needs the config and processor"):
        load_vocabulary(ModelSettings(path=str(tmp_path)))
