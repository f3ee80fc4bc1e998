"""A random-weight LLaVA with the prefix of LLaVA-1.5: 576 image tokens, whatever its other sizes."""

import string
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.method.prompt import Message, Prompt
from m3po_dagster.torchvision_repair import repair_torchvision
from m3po_dagster.world.small_llava import CHAT_TEMPLATE, new_tokenizer

IMAGE_SIDE, PATCH = 336, 14
IMAGE_TOKENS = (IMAGE_SIDE // PATCH) ** 2
QUESTION_TOKENS = 32


@dataclass(frozen=True)
class Shape:
    """Sizes of the language model, and of the vision tower as CLIP's: width, feed-forward, layers, heads."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    vision: tuple[int, int, int, int] = (64, 128, 2, 2)


def save(folder: Path, shape: Shape, dtype: str = "float32") -> Path:
    """Writes model and processor; returns `folder`. Weights are drawn from seed 0."""
    repair_torchvision()
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = new_tokenizer(string.ascii_lowercase)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    width, feed_forward, vision_layers, vision_heads = shape.vision
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_heads,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).to(getattr(torch, dtype))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def prompts(folder: Path, number: int) -> list[Prompt]:
    """Prompts on images of their own, about QUESTION_TOKENS tokens of question each."""
    import numpy as np
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for i in range(number):
        path = folder / f"image-{i}.png"
        Image.fromarray(rng.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)).save(path)
        question = " ".join(rng.choice(list(string.ascii_lowercase), QUESTION_TOKENS))
        found.append(Prompt(f"prompt-{i}", path, (Message("user", question),)))
    return found
