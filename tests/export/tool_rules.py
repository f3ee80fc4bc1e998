"""What tools that are not installed do with an export, as their documentation and sources say it."""

import json
import os
from pathlib import Path

PLACEHOLDERS = ("<image>", "<video>", "<audio>")
_TYPES = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet", "arrow": "arrow", "txt": "text"}


def llama_factory_files(folder: Path, name: str) -> tuple[str, list[str], dict]:
    """What LLaMA-Factory loads for `dataset_dir: folder, dataset: name`: the builder, the files, and the entry."""
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    place = folder / entry["file_name"]
    files = [str(place / file) for file in os.listdir(place)] if place.is_dir() else [str(place)]
    (kind,) = {_TYPES[file.rsplit(".", 1)[-1]] for file in files}
    return kind, sorted(files), entry


def llama_factory_example(row: dict, entry: dict, media_dir: Path) -> dict:
    """A row as LLaMA-Factory aligns it for ranking; AssertionError where it would skip the row or stop."""
    assert entry["formatting"] == "sharegpt" and entry["ranking"] is True
    columns = entry["columns"]
    turns, system = row[columns["messages"]], ""
    if turns[0]["from"] == "system":
        system, turns = turns[0]["value"], turns[1:]
    assert len(turns) % 2 == 1
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2) + ["human"]
    answers = [row[columns[side]] for side in ("chosen", "rejected")]
    assert all(isinstance(answer, dict) and answer["from"] == "gpt" for answer in answers)
    # Joined with media_dir where that is a file, else taken as it is.
    paths = [(os.path.join(media_dir, path), path) for path in row[columns["images"]]]
    images = [joined if os.path.isfile(joined) else path for joined, path in paths]
    assert all(os.path.isfile(path) for path in images)
    for answer in answers:
        texts = [turn["value"] for turn in turns] + [answer["value"]]
        found = {tag: sum(text.count(tag) for text in texts) for tag in PLACEHOLDERS}
        assert found == {"<image>": len(images), "<video>": 0, "<audio>": 0}
    return {
        "system": system,
        "prompt": [turn["value"] for turn in turns],
        "answers": [a["value"] for a in answers],
        "images": images,
    }


def ms_swift_example(row: dict, root_image_dir: Path) -> dict:
    """A row as ms-swift takes it for DPO; AssertionError where it would leave the row out or stop."""
    messages = row["messages"]
    assert all(set(message) <= {"role", "content", "loss"} for message in messages)
    assert all(
        message["role"] in {"system", "user", "assistant"} and message["content"] is not None for message in messages
    )
    assert messages[-1]["role"] == "assistant"
    assert row["rejected_response"] is not None and row["rejected_response"] != messages[-1]["content"]
    images = [path if os.path.exists(path) else os.path.join(root_image_dir, path) for path in row["images"]]
    assert all(os.path.isfile(path) for path in images)
    texts = [message["content"] for message in messages]
    for last in (texts[-1], row["rejected_response"]):
        found = {tag: sum(text.count(tag) for text in [*texts[:-1], last]) for tag in PLACEHOLDERS}
        assert found == {"<image>": len(images), "<video>": 0, "<audio>": 0}
    return {"texts": texts, "rejected": row["rejected_response"], "images": images}
