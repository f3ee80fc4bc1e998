"""LFM2-VL: short convolutions in place of attention in some layers; patches of every image padded to one length."""

from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

TILE_SIZE, PATCH_SIZE = 32, 8
SPECIALS = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    *(f"<|img_row_{row}_col_{column}|>" for row in (1, 2, 3) for column in (1, 2, 3)),
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build():
    """The model and its processor."""
    from transformers import (
        Lfm2Config,
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
        Siglip2VisionConfig,
    )

    tokenizer = byte_pairs(
        SPECIALS,
        {
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        bos="<|startoftext|>",
        eos="<|im_end|>",
        pad="<|pad|>",
        adds_bos=True,
    )
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            encoder_patch_size=PATCH_SIZE,
            tile_size=TILE_SIZE,
            downsample_factor=2,
            min_tiles=2,
            max_tiles=4,
            min_image_tokens=2,
            max_image_tokens=4,
            max_pixels_tolerance=1.0,
            use_thumbnail=True,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(**VISION_SIZES, patch_size=PATCH_SIZE, num_patches=16, vision_use_head=False),
        text_config=Lfm2Config(
            **TEXT_SIZES,
            **special_ids(tokenizer),
            layer_types=["conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
        downsample_factor=2,
    )
    return randomised(Lfm2VlForConditionalGeneration(config), tokenizer), processor
