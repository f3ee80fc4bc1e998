"""Qwen2.5-VL: images at their own resolution, patches of all images in one row, rotary positions in three axes."""

from zoo.qwen import chat_template, new_processor, new_tokenizer, placeholders
from zoo.weights import TEXT_SIZES, randomised, special_ids


def build():
    """The model and its processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = new_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT_SIZES,
            **special_ids(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": TEXT_SIZES["hidden_size"],
        },
        **placeholders(tokenizer),
    )
    model = randomised(Qwen2_5_VLForConditionalGeneration(config), tokenizer)
    return model, new_processor(Qwen2_5_VLProcessor, tokenizer, chat_template())
