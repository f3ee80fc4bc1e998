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


def build(image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE, **text_sizes: int):
    """The model and its processor; `text_sizes` are the language model's, where other ones are wanted."""
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
    size = {"height": image_size, "width": image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION_SIZES, image_size=image_size, patch_size=patch_size, projection_dim=32),
        text_config=LlamaConfig(**{**TEXT_SIZES, **special_ids(tokenizer), **text_sizes}),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return randomised(LlavaForConditionalGeneration(config), tokenizer), processor
