"""LLaVA-NeXT on Mistral: an overview of the image and its tiles, as many as its shape asks for."""

from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

IMAGE_SIZE, PATCH_SIZE = 32, 16
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
# The layout of llava-v1.6-mistral: "[INST] <image>\nQ [/INST] A</s>"; the tokenizer begins the sequence.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif message.role == 'assistant' %}{{ ' ' + message.content[0].text + '</s>' }}"
    "{% else %}{{ '<<SYS>>\n' + message.content[0].text + '\n<</SYS>>\n\n' }}{% endif %}"
    "{% endfor %}"
)


def build():
    """The model and its processor."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        MistralConfig,
    )

    tokenizer = byte_pairs(
        ("<unk>", "<s>", "</s>", "<image>", "<pad>"),
        {"image_token": "<image>"},
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        adds_bos=True,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(size=size, crop_size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION_SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=32),
        text_config=MistralConfig(**TEXT_SIZES, **special_ids(tokenizer), sliding_window=None),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return randomised(LlavaNextForConditionalGeneration(config), tokenizer), processor
