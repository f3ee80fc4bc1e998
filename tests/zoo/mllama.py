"""Llama 3.2 Vision: the image stays outside the sequence, some layers look at it by cross-attention."""

from zoo.tokens import byte_pairs
from zoo.weights import TEXT_SIZES, randomised, special_ids

TILE_SIZE, PATCH_SIZE, MAX_TILES = 32, 8, 4
SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|finetune_right_pad_id|>",
    "<|image|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|image|>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def build():
    """The model and its processor."""
    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessor, MllamaProcessor

    tokenizer = byte_pairs(
        SPECIALS, {}, bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|finetune_right_pad_id|>", adds_bos=True
    )
    size = {"height": TILE_SIZE, "width": TILE_SIZE}
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size=size, max_image_tiles=MAX_TILES),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    config = MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": TILE_SIZE,
            "patch_size": PATCH_SIZE,
            "max_num_tiles": MAX_TILES,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 3 * 32,
        },
        text_config={**TEXT_SIZES, **special_ids(tokenizer), "num_hidden_layers": 3, "cross_attention_layers": [1]},
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = randomised(MllamaForConditionalGeneration(config), tokenizer)
    # They open at 0, which would leave the image out.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gate" in name and weight.dim() == 1:
                weight.fill_(0.5)
    return model, processor
