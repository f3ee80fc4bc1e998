"""Tiny models of the scorers' real classes in folders, weights random but of a scale that lets every part matter."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from zoo.tokens import byte_pairs, word_pieces
from zoo.weights import VISION_SIZES, special_ids

from m3po_dagster.torchvision_repair import repair_torchvision

IMAGE_SIZE, PATCH_SIZE, CONTEXT = 32, 8, 32
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


def saved(build: Callable, folder: Path) -> Path:
    """Builds a model and its processor and saves both in `folder`; returns `folder`."""
    import torch

    repair_torchvision()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, processor = build()
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    # As published checkpoints say it; saving leaves it out.
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text()) | {"model_input_names": processor.tokenizer.model_input_names}
    file.write_text(json.dumps(said))
    return folder


def clip():
    """CLIP: causal text tower, the end token's state counts, padding is masked."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = _tokenizer(mask=True)
    text = {**VISION_SIZES, **special_ids(tokenizer), "max_position_embeddings": CONTEXT}
    config = CLIPConfig(
        text_config=text,
        vision_config={**VISION_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        projection_dim=16,
    )
    images = CLIPImageProcessor(size=SQUARE, crop_size=SQUARE, do_center_crop=False)
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


def joined():
    """A vision tower of CLIP's and a text tower of BERT's, put together as transformers does it for any two."""
    from transformers import (
        BertConfig,
        CLIPImageProcessor,
        CLIPVisionConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        VisionTextDualEncoderProcessor,
    )

    tokenizer = word_pieces()
    # Letter by letter, so more of them; BERT's positions may be more than its tokenizer allows.
    tokenizer.model_max_length = 2 * CONTEXT
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        CLIPVisionConfig(**VISION_SIZES, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE),
        BertConfig(**VISION_SIZES, vocab_size=len(tokenizer), max_position_embeddings=2 * CONTEXT + 2),
        projection_dim=16,
    )
    images = CLIPImageProcessor(size=SQUARE, crop_size=SQUARE, do_center_crop=False)
    return VisionTextDualEncoderModel(config), VisionTextDualEncoderProcessor(images, tokenizer)


def siglip():
    """SigLIP: the last position's state counts, padding included, as it was trained."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    tokenizer = _tokenizer(mask=False)
    text = {**VISION_SIZES, **special_ids(tokenizer), "max_position_embeddings": CONTEXT, "projection_size": 32}
    config = SiglipConfig(
        text_config=text, vision_config={**VISION_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    )
    return SiglipModel(config), SiglipProcessor(SiglipImageProcessor(size=SQUARE), tokenizer)


def siglip2():
    """SigLIP 2: patches in the image's own shape, padded to a fixed number of them."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model, Siglip2Processor

    tokenizer = _tokenizer(mask=False)
    # The processor's own default length.
    text = {**VISION_SIZES, **special_ids(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    config = Siglip2Config(
        text_config=text, vision_config={**VISION_SIZES, "num_patches": 16, "patch_size": PATCH_SIZE}
    )
    images = Siglip2ImageProcessor(patch_size=PATCH_SIZE, max_num_patches=16)
    tokenizer.model_max_length = 64
    return Siglip2Model(config), Siglip2Processor(images, tokenizer)


def _tokenizer(mask: bool):
    """Byte pairs between a begin and an end token, padded on the right."""
    from tokenizers import processors

    # The end of a text is not token 2: CLIP reads a config that says so as one of its first, mistaken ones.
    tokenizer = byte_pairs(("<pad>", "<unk>", "<s>", "</s>"), {}, bos="<s>", eos="</s>", pad="<pad>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")],
    )
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = CONTEXT
    tokenizer.model_input_names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    return tokenizer


def blip2_retrieval():
    """BLIP-2 with the matching head, its Q-Former reading WordPiece from CLS to SEP."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor, BlipImageProcessor

    queries = 4
    processor = Blip2Processor(BlipImageProcessor(size=SQUARE), word_pieces(), num_query_tokens=queries)
    config = Blip2Config(
        vision_config={**VISION_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE},
        qformer_config={
            **VISION_SIZES,
            "vocab_size": len(processor.tokenizer),
            "encoder_hidden_size": 32,
            "use_qformer_text_input": True,
            "max_position_embeddings": 64,
        },
        num_query_tokens=queries,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_text_hidden_size=16,
    )
    return Blip2ForImageTextRetrieval(config), processor


def reward_model(family: str, labels: int = 1):
    """The classifier of one of the zoo's families, with the family's processor and chat template."""
    from m3po_dagster.method.alignment.reward_model import classifier_class

    model, processor = import_module(f"zoo.{family}").build()
    config = model.config
    config.num_labels = labels
    return classifier_class(config)(config), processor
