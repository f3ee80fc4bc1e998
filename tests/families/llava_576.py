"""A LLaVA whose images are 576 tokens, as in LLaVA-1.5 at 336 pixels, and whose layers are narrow: ratios keep."""

from pathlib import Path

from zoo.llava import build

IMAGE_TOKENS, IMAGE_SIZE, PATCH_SIZE = 576, 96, 4


def llava_576(folder: Path, **text_sizes: int) -> Path:
    """Saves model and processor; `text_sizes` are the language model's, where other ones are wanted."""
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
    for part in build(IMAGE_SIZE, PATCH_SIZE, max_position_embeddings=1024, **text_sizes):
        part.save_pretrained(folder)
    return folder
