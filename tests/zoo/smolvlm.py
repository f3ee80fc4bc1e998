"""SmolVLM2: Idefics3's layout under its own classes."""

from zoo.idefics3 import CHAT_TEMPLATE, LONGEST_EDGE, PATCH_SIZE, TILE_SIZE, TOKENS_A_TILE, new_tokenizer
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids


def build():
    """The model and its processor, which needs the package num2words for the time stamps of videos."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = new_tokenizer()
    sizes = {"size": {"longest_edge": LONGEST_EDGE}, "max_image_size": {"longest_edge": TILE_SIZE}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**sizes),
        image_seq_len=TOKENS_A_TILE,
        chat_template=CHAT_TEMPLATE,
    )
    config = SmolVLMConfig(
        vision_config={**VISION_SIZES, "image_size": TILE_SIZE, "patch_size": PATCH_SIZE},
        text_config=LlamaConfig(**TEXT_SIZES, **special_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return randomised(SmolVLMForConditionalGeneration(config), tokenizer), processor
