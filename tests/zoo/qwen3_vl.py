"""Qwen3-VL: as Qwen2.5-VL, with vision features added inside the language model's first layers too (DeepStack)."""

from zoo.qwen import chat_template, new_processor, new_tokenizer, placeholders
from zoo.weights import TEXT_SIZES, randomised, special_ids


def build():
    """The model and its processor."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    tokenizer = new_tokenizer()
    config = Qwen3VLConfig(
        text_config={
            **TEXT_SIZES,
            **special_ids(tokenizer),
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": TEXT_SIZES["hidden_size"],
            "num_position_embeddings": 8 * 8,
            "deepstack_visual_indexes": [0],
        },
        **placeholders(tokenizer),
    )
    model = randomised(Qwen3VLForConditionalGeneration(config), tokenizer)
    return model, new_processor(Qwen3VLProcessor, tokenizer, chat_template(system=""))
