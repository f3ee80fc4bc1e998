"""Datasets on disk for the tests, in LLaVA-Instruct's layout, with images of known content."""

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from m3po_dagster.datasets.index import DatasetIndex
from m3po_dagster.datasets.row import SourceRow
from m3po_dagster.datasets.settings import DatasetSettings

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]


def record(name: object, image: str | None = None) -> dict:
    """A record with one question."""
    return {"id": str(name), "conversations": TURNS} | ({"image": image} if image else {})


def picture(path: Path, number: int) -> Path:
    """A small image whose content is told by a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (number % 256, number // 256 % 256, 7)).save(path)
    return path


def dataset(folder: Path, records: list, shards: int = 5, **settings: object) -> DatasetSettings:
    """The records written to a file; settings of the one source, and of the dataset under their own names."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(records))
    source: Mapping = {"path": folder / "data.json", "image_root": folder / "images", "format": "llava_instruct"}
    own = {name: settings.pop(name) for name in ("max_megapixels", "turns") if name in settings}
    return DatasetSettings(sources={"toy": {**source, **settings}}, shards=shards, **own)


def rows_of(settings: DatasetSettings, memory=None, progress=None) -> list[SourceRow]:
    """All rows of a dataset."""
    with DatasetIndex(settings, memory) as index:
        return list(index.rows(progress))
