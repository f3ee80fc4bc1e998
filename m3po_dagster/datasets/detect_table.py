"""Which columns of a Parquet or Arrow dataset hold image, question and answer: guessed from names and types."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.datasets.benchmark_layouts import COLUMNS, BenchmarkLayout, benchmark_of
from m3po_dagster.datasets.files import files_of
from m3po_dagster.datasets.record import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

RLAIF_V = frozenset({"image", "question", "chosen", "rejected"})
IMAGE_NAMES = ("image", "img", "picture", "image_path", "image_file", "file_name")
QUESTION_NAMES = ("question", "instruction", "prompt", "query", "problem")
ANSWER_NAMES = ("answer", "response", "output", "caption")
CONVERSATION_NAMES = ("conversations", "messages", "conversation")
ID_NAMES = ("id", "question_id", "sample_id", "uid", "idx")
_OF_SPLIT = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.")


def of_schema(schema: "pa.Schema") -> "dict[str, str] | BenchmarkLayout | str":
    """The column settings of a Hugging Face source; "rlaif_v"; the benchmark; or, as words, what is missing."""
    import pyarrow.types as kinds

    names = schema.names
    if set(names) >= RLAIF_V and kinds.is_struct(schema.field("image").type):
        return "rlaif_v"
    if benchmark := benchmark_of(names, COLUMNS):
        return benchmark
    listed = ", ".join(names[:12])
    images = [name for name in names if _is_image(schema, name)]
    image = next((name for name in IMAGE_NAMES if name in images), images[0] if images else None)
    if image is None:
        several = [name for name in names if kinds.is_list(schema.field(name).type) and name == "images"]
        why = " (`images` holds a list; a prompt has one image)" if several else ""
        return f"a table without an image column{why}; its columns are {listed}"
    settings = {"image_column": image}
    conversation = _first(schema, CONVERSATION_NAMES, kinds.is_list)
    question = _first(schema, QUESTION_NAMES, _is_text)
    if conversation is not None:
        settings["conversation_column"] = conversation
    elif question is not None:
        settings["question_column"] = question
        if answer := _first(schema, ANSWER_NAMES, _is_text):
            settings["answer_column"] = answer
    else:
        return f"a table with images, and without a question or conversation column; its columns are {listed}"
    if identity := next((name for name in ID_NAMES if name in names), None):
        settings["id_column"] = identity
    return settings


def schema_of(path: Path) -> "tuple[pa.Schema, str | None]":
    """The columns of a table's first file, and the split that is read where there are several.

    Raises DatasetError, naming the file, when it is no Parquet or Arrow file or has none.
    """
    split = None
    if path.is_dir() and (listing := path / "dataset_dict.json").is_file():
        split = _split(listing)
        path = path / split
    files = files_of(path, (".parquet", ".arrow"))
    file, split = files[0], split or _named_split(files)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as opened:
            start = opened.read(6)
        if start.startswith(b"PAR1"):
            schema = pq.read_schema(file)
            if file.suffix.lower() != ".parquet":
                raise DatasetError(f"{file}: this is Parquet, and read as such by its name: let it end in .parquet")
            return schema, split
        with pa.OSFile(os.fspath(file)) as source:
            reader = pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)
            return reader.schema, split
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{file}: no Parquet or Arrow file that can be read, is it whole? ({error})") from None


def _named_split(files: Sequence[Path]) -> str | None:
    """The split to read of files named SPLIT-00000-of-00005: the training split of several; None for one."""
    splits = [match["split"] for file in files if (match := _OF_SPLIT.match(file.name))]
    if len(set(splits)) < 2:
        return None
    return next((split for split in splits if split == "train" or split.endswith("-train")), splits[0])


def _split(listing: Path) -> str:
    try:
        splits = json.loads(listing.read_text(encoding="utf-8"))["splits"]
        split = "train" if "train" in splits else str(splits[0])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DatasetError(f"{listing}: no list of splits as save_to_disk writes it ({error})") from None
    if Path(split).name != split:
        raise DatasetError(f"{listing}: {split!r} is no name of a split")
    return split


def _first(schema: "pa.Schema", names: tuple[str, ...], fits) -> str | None:
    return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as kinds

    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _is_image(schema: "pa.Schema", name: str) -> bool:
    """An Image feature (bytes and path), raw bytes, or a path in a column that is called so."""
    import pyarrow.types as kinds

    kind = schema.field(name).type
    if kinds.is_struct(kind):
        return {field.name for field in kind} >= {"bytes", "path"}
    if kinds.is_binary(kind) or kinds.is_large_binary(kind):
        return True
    return _is_text(kind) and name in IMAGE_NAMES
