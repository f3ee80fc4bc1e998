"""BLIP-2 on Flan-T5: the language model has an encoder, which reads the question, and a decoder for the answer."""

from zoo.blip_2 import assembled
from zoo.tokens import byte_pairs
from zoo.weights import special_ids


def build():
    """The model and its processor."""
    from transformers import T5Config

    tokenizer = byte_pairs(("<pad>", "</s>", "<unk>", "<image>"), {}, bos=None, eos="</s>", pad="<pad>")
    text = T5Config(
        **special_ids(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return assembled(tokenizer, text)
