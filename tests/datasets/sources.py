"""Writes the same few records in each format, in its published layout, by the library that others write it with."""

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from pydantic import TypeAdapter

from m3po_dagster.datasets.settings import AnySource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

MAX_RECORD_BYTES = 100_000


@dataclass(frozen=True)
class Pair:
    """One image, one question, one answer."""

    id: str
    image: str
    data: bytes
    question: str
    answer: str


PAIRS = [
    Pair(f"{number:012d}", f"{number:012d}.jpg", b"\xff\xd8 %d" % number, f"What is it, {number}? é", f"Bus {number}.")
    for number in range(7)
]


def source(format: str, path: Path, **more) -> AnySource:
    """The settings of a source of these records."""
    columns = {"question_column": "question", "answer_column": "answer", "id_column": "id"}
    more = (columns if format == "huggingface" else {}) | more
    return TypeAdapter(AnySource).validate_python(
        {"format": format, "path": path, "image_root": path.parent / "images", **more}
    )


def write(format: str, folder: Path, pairs: list[Pair] = PAIRS) -> Path:
    """Writes the pairs and gives the source's path."""
    return _WRITERS[format](folder, pairs)


def _json_array(folder: Path, pairs: list[Pair]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps([{"id": pair.id, "image": pair.image, **_turns(pair)} for pair in pairs]))
    return path


def _json_lines(folder: Path, pairs: list[Pair]) -> Path:
    path = folder / "data.jsonl"
    keys = ("id", "image", "question", "answer")
    path.write_text("".join(json.dumps({key: getattr(pair, key) for key in keys}) + "\n" for pair in pairs))
    return path


def _turns(pair: Pair) -> dict:
    return {"conversations": [{"from": "human", "value": pair.question}, {"from": "gpt", "value": pair.answer}]}


def rlaif_table(pairs: list[Pair]) -> pa.Table:
    """RLAIF-V's columns, but for the name of the data set, which would enter the id."""
    count = len(pairs)
    return pa.table(
        {
            "ds_name": pa.nulls(count, pa.string()),
            "image": pa.array([{"bytes": pair.data, "path": pair.image} for pair in pairs], IMAGE),
            "question": pa.array([pair.question for pair in pairs], pa.string()),
            "chosen": pa.array([pair.answer for pair in pairs], pa.string()),
            "rejected": ["No idea."] * count,
            "origin_dataset": ["VQAv2"] * count,
            "origin_split": ['{"model": "llava15-7b", "type": "question_answer"}'] * count,
            "idx": pa.array([pair.id for pair in pairs], pa.string()),
            "image_path": pa.array([pair.image for pair in pairs], pa.string()),
        }
    )


def _rlaif_v(folder: Path, pairs: list[Pair]) -> Path:
    path = folder / "RLAIF-V-Dataset"
    path.mkdir()
    for number, start in enumerate(range(0, max(1, len(pairs)), 3)):
        pq.write_table(rlaif_table(pairs[start : start + 3]), path / f"RLAIF-V-Dataset_{number:03d}.parquet")
    return path


def hub_dataset(pairs: list[Pair]) -> datasets.Dataset:
    """The pairs as the datasets library holds them, with an image feature."""
    text = datasets.Value("string")
    features = {"id": text, "image": datasets.Image(), "question": text, "answer": text}
    columns = {
        "id": [pair.id for pair in pairs],
        "image": [{"bytes": pair.data, "path": pair.image} for pair in pairs],
        "question": [pair.question for pair in pairs],
        "answer": [pair.answer for pair in pairs],
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def _hub(folder: Path, pairs: list[Pair]) -> Path:
    hub_dataset(pairs).save_to_disk(str(folder / "saved"), num_shards=min(2, len(pairs)) or 1)
    return folder / "saved"


def _webdataset(folder: Path, pairs: list[Pair]) -> Path:
    path = folder / "shards"
    path.mkdir()
    for number, start in enumerate(range(0, max(1, len(pairs)), 4)):
        with webdataset.TarWriter(str(path / f"{number:06d}.tar")) as tar:
            for pair in pairs[start : start + 4]:
                asked = {"id": pair.id, "question": pair.question, "answer": pair.answer}
                tar.write({"__key__": pair.id, "jpg": pair.data, "json": asked})
    return path


_WRITERS = {
    "llava_instruct": _json_array,
    "sharegpt4v": _json_array,
    "jsonl": _json_lines,
    "rlaif_v": _rlaif_v,
    "huggingface": _hub,
    "webdataset": _webdataset,
}

FORMATS = tuple(_WRITERS)
