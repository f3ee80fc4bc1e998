"""InstructBLIP on Vicuna: a Q-Former that reads the instruction too; no chat template, the processor adds the image."""

from zoo.tokens import byte_pairs, word_pieces
from zoo.weights import TEXT_SIZES, VISION_SIZES, randomised, special_ids

IMAGE_SIZE, PATCH_SIZE, QUERIES = 32, 8, 5


def build():
    """The model and its processor."""
    from transformers import (
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlamaConfig,
    )

    tokenizer = byte_pairs(
        ("<unk>", "<s>", "</s>", "<image>", "<pad>"),
        {},
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        adds_bos=True,
    )
    instruction_tokenizer = word_pieces()
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer,
        instruction_tokenizer,
        num_query_tokens=QUERIES,
    )
    config = InstructBlipConfig(
        vision_config={**VISION_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        qformer_config={**VISION_SIZES, "vocab_size": len(instruction_tokenizer), "encoder_hidden_size": 32},
        text_config=LlamaConfig(**TEXT_SIZES, **special_ids(tokenizer)).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return randomised(InstructBlipForConditionalGeneration(config), tokenizer), processor
