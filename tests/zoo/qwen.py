"""What Qwen2.5-VL and Qwen3-VL share: tokens, the ChatML layout, the image processor."""

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def new_tokenizer():
    """Qwen's has no begin of sequence, and pads with the end of a document."""
    from zoo.tokens import byte_pairs

    return byte_pairs(SPECIALS, {}, bos=None, eos="<|im_end|>", pad="<|endoftext|>")


def chat_template(system: str = "You are a helpful assistant.") -> str:
    """Turns between `<|im_start|>role` and `<|im_end|>`; `system` begins a conversation that brings none."""
    default = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + system + "<|im_end|>\n' }}{% endif %}"
    return (
        (default if system else "")
        + "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% for part in message.content %}"
        + "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def new_processor(processor_class: type, tokenizer, template: str):
    """Images of 4 to 24 tokens of 16 x 16 pixels."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return processor_class(
        image_processor=Qwen2VLImageProcessor(
            patch_size=8, temporal_patch_size=2, merge_size=2, min_pixels=4 * 16**2, max_pixels=24 * 16**2
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=8, temporal_patch_size=2, merge_size=2),
        chat_template=template,
    )


def placeholders(tokenizer) -> dict[str, int]:
    """The ids that the model's config names."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}
