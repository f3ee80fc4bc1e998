"""PaliGemma: image and question see each other in both directions, only the answer is causal; no chat template."""

from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

IMAGE_SIZE, PATCH_SIZE = 32, 8


def build():
    """The model and its processor."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tokenizer = byte_pairs(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<image>"),
        {"image_token": "<image>"},
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
    )
    image_processor = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    image_processor.image_seq_length = (IMAGE_SIZE // PATCH_SIZE) ** 2
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    config = PaliGemmaConfig(
        text_config=GemmaConfig(**TEXT_SIZES, **special_ids(tokenizer), head_dim=8),
        vision_config=SiglipVisionConfig(
            **VISION_SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, vision_use_head=False, projection_dim=32
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return randomised(PaliGemmaForConditionalGeneration(config), tokenizer), processor
