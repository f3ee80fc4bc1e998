"""Prompts with real image files: an odd size, gray, with alpha; questions of different length; several turns."""

from pathlib import Path

from m3po_dagster.method.prompt import Message, Prompt


def write_images(folder: Path) -> dict[str, Path]:
    """Writes four images: odd (67x41 RGB, JPEG), gray (40x40, PNG), alpha (30x52 RGBA, PNG), wide (90x32 RGB, PNG)."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def blocks(width: int, height: int, channels: int):
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]

    images = {
        "odd.jpg": Image.fromarray(blocks(67, 41, 3)),
        "gray.png": Image.fromarray(blocks(40, 40, 1)[:, :, 0]),
        "alpha.png": Image.fromarray(blocks(30, 52, 4)),
        "wide.png": Image.fromarray(blocks(90, 32, 3)),
    }
    for name, image in images.items():
        image.save(folder / name)
    return {Path(name).stem: folder / name for name in images}


def write_prompts(folder: Path) -> list[Prompt]:
    """Five prompts on the images written to `folder`; the last has three turns, the fourth looks at the first's."""
    images = write_images(folder)
    earlier = (
        Message("user", "Is there a red square in the picture?"),
        Message("assistant", "No, there is no red square."),
        Message("user", "How many shapes are there?"),
    )
    asked = {
        "odd": ("odd", (Message("user", "What color is the circle?"),)),
        "gray": ("gray", (Message("user", "Describe the image in a few words: a shape, a line or two dots?"),)),
        "alpha": ("alpha", (Message("user", "Is it red?"),)),
        "odd-again": ("odd", (Message("user", "Are there two white dots at the bottom of the picture?"),)),
        "turns": ("wide", earlier),
    }
    return [Prompt(prompt_id, images[image], messages) for prompt_id, (image, messages) in asked.items()]
