"""Random-weight models of the families that users come with, each built from its own config class in a folder.

A folder holds what a published checkpoint's does: config, weights, generation config, the family's own processor with
its special tokens under their real names, and a chat template of the family's layout where it publishes one. Sizes are
tiny (2 layers, an image of 4 to 40 tokens); classes, tensors and their shapes' rules are the real ones.
"""

from importlib import import_module
from pathlib import Path

FAMILIES = (
    "llava",
    "llava_next",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "instructblip",
    "blip_2",
    "gemma3",
    "lfm2_vl",
)
# Which tokens see what is not as in the others: the image outside the sequence, a question read in both directions.
OTHER_ATTENTION = ("mllama", "paligemma")
# What `make test` has no time for: a second class of a family that is there, and the above.
MORE = (*OTHER_ATTENTION, "smolvlm")
# Reads question and answer apart.
ENCODER_DECODER = "blip_2_t5"


def family(name: str, folder: Path) -> Path:
    """Saves the model and processor of family `name` in `folder`, weights always the same; returns `folder`."""
    from m3po_dagster.torchvision_repair import repair_torchvision

    repair_torchvision()
    model, processor = import_module(f"zoo.{name}").build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
