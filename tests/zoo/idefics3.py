"""Idefics3, the class of SmolVLM-Instruct: the image split into rows and columns of tiles, and an overview."""

from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

TILE_SIZE, PATCH_SIZE, LONGEST_EDGE = 32, 8, 64
TOKENS_A_TILE = (TILE_SIZE // PATCH_SIZE) ** 2 // 4
TILE_NAMES = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *TILE_NAMES,
)
# The layout of SmolVLM: "<|im_start|>User:<image>Q<end_of_utterance>\nAssistant: A<end_of_utterance>\n".
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{{ ':' if message.content[0].type == 'image' else ': ' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def new_tokenizer():
    """SmolVLM's: a turn ends with its own token, which also ends the answer."""
    return byte_pairs(
        SPECIALS,
        {
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
    )


def build():
    """The model and its processor."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    tokenizer = new_tokenizer()
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size={"longest_edge": LONGEST_EDGE}, max_image_size={"longest_edge": TILE_SIZE}
        ),
        tokenizer=tokenizer,
        image_seq_len=TOKENS_A_TILE,
        chat_template=CHAT_TEMPLATE,
    )
    config = Idefics3Config(
        vision_config={**VISION_SIZES, "image_size": TILE_SIZE, "patch_size": PATCH_SIZE},
        text_config=LlamaConfig(**TEXT_SIZES, **special_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    return randomised(Idefics3ForConditionalGeneration(config), tokenizer), processor
