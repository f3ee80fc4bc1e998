"""A LLaVA whose images are 576 tokens, as in LLaVA-1.5 at 336 pixels, and whose layers are narrow: ratios keep."""

from pathlib import Path

from zoo.llava import CHAT_TEMPLATE
from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

IMAGE_TOKENS, IMAGE_SIZE, PATCH_SIZE = 576, 96, 4


def llava_576(folder: Path, vocabulary: int | None = None) -> Path:
    """Saves model and processor; `vocabulary` is the LM head's width, that of the tokenizer unless given."""
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
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
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    text = {**TEXT_SIZES, **special_ids(tokenizer), "max_position_embeddings": 1024}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION_SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=32),
        text_config=LlamaConfig(**{**text, "vocab_size": vocabulary or len(tokenizer)}),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    randomised(LlavaForConditionalGeneration(config), tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
