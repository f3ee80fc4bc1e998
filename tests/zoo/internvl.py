"""InternVL3: the image cut into tiles by its shape, and an overview after them; tiles of all images in one row."""

from zoo.qwen import SPECIALS
from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

IMAGE_SIZE, PATCH_SIZE, MAX_TILES = 32, 8, 6
TOKENS_A_TILE = (IMAGE_SIZE // PATCH_SIZE) ** 2 // 4
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
# ChatML, the placeholder on a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build():
    """The model and its processor."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    tokenizer = byte_pairs((*SPECIALS[:3], *NAMED.values()), NAMED, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=MAX_TILES),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=TOKENS_A_TILE,
        chat_template=CHAT_TEMPLATE,
    )
    config = InternVLConfig(
        vision_config={**VISION_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        text_config=Qwen2Config(**TEXT_SIZES, **special_ids(tokenizer)),
        image_token_id=processor.image_token_id,
        image_seq_length=TOKENS_A_TILE,
        tie_word_embeddings=False,
    )
    return randomised(InternVLForConditionalGeneration(config), tokenizer), processor
