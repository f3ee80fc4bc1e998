"""A small file in MIA-Bench's layout with its images: what its records have that a reader can trip over."""

import json
from pathlib import Path

from PIL import Image

from m3po_dagster.evaluation.mia_bench import MiaBench
from m3po_dagster.evaluation.settings import MiaBenchSettings

COCO = "http://images.cocodataset.org/val2017/000000000001.jpg"
STOCK = "https://media.example.com/id/7/photo/spiral-staircase.png?b=1&s=612x612&c=34U6K_Q-btDus="
FLICKR = "https://live.example.com/3529/3211872688_157085df0d_m.png"


def record(image: str, *components: tuple[str, float, str], type: str = "basic", **more) -> dict:
    """One record; a component is (text, weight, type)."""
    texts, weights, types = (list(column) for column in zip(*components, strict=True))
    return {
        "image": image,
        "instruction": ", ".join(texts),
        "type": type,
        "num_of_component": len(texts),
        "components": texts,
        "component_weight": weights,
        "component_type": types,
    } | more


RECORDS = [
    record(COCO, ("describe it", 4, "describe"), ("name the colour", 3, "mention"), ("2 words", 3, "mention")),
    # Weights that sum to 8, and a name of another record's image.
    record(
        STOCK, ("name the colour", 5, "describe"), ("3 words", 3, "length_limit"), type="complex", image_name="x.jpg"
    ),
    # A single component, and five of which two share a type.
    record(FLICKR, ("name the colour", 10, "describe"), type="complex"),
    record(
        COCO,
        ("describe it", 2, "describe"),
        ("as a poem", 2, "linguistics"),
        ("with a metaphor", 2, "linguistics"),
        ("1 words", 2, "length_limit"),
        ("name the colour", 2, "mention"),
        type="advanced",
    ),
]
FILES = {
    "000000000001.jpg": "red",
    "spiral-staircase.png": "blue",
    "3211872688_157085df0d_m.png": "green",
}
IDS = ("basic/1", "complex/2", "complex/3", "advanced/4")


def build(folder: Path, judge: dict, records=RECORDS, files=FILES, **changed) -> MiaBench:
    """The benchmark over a file of these records and images of these colours."""
    (folder / "images").mkdir(exist_ok=True)
    for name, colour in files.items():
        Image.new("RGB", (16, 16), colour).save(folder / "images" / name)
    path = folder / "instruction_benchmark_all.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return MiaBench(MiaBenchSettings(path=path, image_root=folder / "images", judge=judge, **changed))
