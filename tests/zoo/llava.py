"""LLaVA-1.5: every image of one size, the image before the question."""

from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

IMAGE_SIZE, PATCH_SIZE = 32, 8
# The layout of llava-1.5: "USER: <image>\nQ ASSISTANT: A "; the tokenizer begins the sequence.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build():
    """The model and its processor."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
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
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION_SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=32),
        text_config=LlamaConfig(**TEXT_SIZES, **special_ids(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return randomised(LlavaForConditionalGeneration(config), tokenizer), processor
