"""Examples without their images: what an answer's log-prob owes to the picture shows beside a blank one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m3po_dagster.method.optimization.examples import PreferenceExample


def blanked(examples: Sequence[PreferenceExample], folder: Path) -> list[PreferenceExample]:
    """The examples with blank images, written to `folder`: each of its image's size, all of one colour.

    The size stays, so that a processor makes as many tiles and tokens of it. The colour is the mean over all the
    images: that of the image itself would still tell a red scene from a blue one.
    """
    import numpy as np
    from PIL import Image

    sizes: dict[Path, tuple[int, int]] = {}
    colours = []
    for example in examples:
        path = example.prompt.image_path
        if path not in sizes:
            image = example.prompt.open_image()
            sizes[path] = image.size
            colours.append(np.asarray(image).mean(axis=(0, 1)))
    colour = tuple(np.mean(colours, axis=0).round().astype(int).tolist())
    blanks = {}
    for number, (path, size) in enumerate(sizes.items()):
        blanks[path] = folder / f"{number}.png"
        Image.new("RGB", size, colour).save(blanks[path])
    return [
        replace(example, prompt=replace(example.prompt, image_path=blanks[example.prompt.image_path]))
        for example in examples
    ]
