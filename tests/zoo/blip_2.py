"""BLIP-2 on OPT: learned positions, a Q-Former that looks at the image alone; no chat template."""

from zoo.tokens import byte_pairs
from zoo.weights import VISION_SIZES, randomised, special_ids

IMAGE_SIZE, PATCH_SIZE, QUERIES = 32, 8, 4


def build():
    """The model and its processor."""
    from transformers import OPTConfig

    # OPT begins every text with the token that also ends it.
    tokenizer = byte_pairs(
        ("<unk>", "<pad>", "</s>", "<image>"), {}, bos="</s>", eos="</s>", pad="<pad>", adds_bos=True
    )
    text = OPTConfig(
        **special_ids(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    return assembled(tokenizer, text)


def assembled(tokenizer, text_config):
    """BLIP-2 around a language model, and its processor."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    processor = Blip2Processor(
        BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}), tokenizer, num_query_tokens=QUERIES
    )
    config = Blip2Config(
        vision_config={**VISION_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        qformer_config={**VISION_SIZES, "vocab_size": 32, "encoder_hidden_size": 32},
        text_config=text_config.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return randomised(Blip2ForConditionalGeneration(config), tokenizer), processor
