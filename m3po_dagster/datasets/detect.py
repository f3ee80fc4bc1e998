"""Which format a downloaded file or folder has: told by what it holds, never by its name alone.

POPE's .json is JSON lines, and Hugging Face's .arrow is a stream. What is known and is no instruction data (a
benchmark, a packed archive, a pointer of Git LFS) is named, with what to do.
"""

import tarfile
from collections.abc import Callable
from pathlib import Path

from m3po_dagster.datasets.benchmark_layouts import MME_FOLDER, BenchmarkLayout
from m3po_dagster.datasets.detect_json import first_image, of_text
from m3po_dagster.datasets.detect_table import of_schema, schema_of
from m3po_dagster.datasets.readers import READERS
from m3po_dagster.datasets.record import DatasetError
from m3po_dagster.datasets.settings import (
    AnySource,
    HuggingFaceSource,
    JsonArraySource,
    JsonLinesSource,
    RlaifVSource,
    WebDatasetSource,
)

LOOKED_FOR = (
    "LLaVA-Instruct's JSON array of {id, image, conversations}, JSON lines with image and question, RLAIF-V's or other "
    "Parquet with an image column, a folder of save_to_disk, Arrow files, WebDataset tar shards"
)

_HEAD = 1 << 16
_FOREIGN = (
    (b"\x1f\x8b", "it is packed with gzip: unpack it first (gunzip FILE, or tar xzf FILE for a .tar.gz)"),
    (b"BZh", "it is packed with bzip2: unpack it first (bunzip2 FILE)"),
    (b"\xfd7zXZ\0", "it is packed with xz: unpack it first (unxz FILE)"),
    (b"\x28\xb5\x2f\xfd", "it is packed with zstd: unpack it first (unzstd FILE)"),
    (b"PK\x03\x04", "it is a zip archive: unpack it first and name what is inside"),
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file: fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", "it is a web page: the download gave a page in place of the file"),
    (b"<!doctype", "it is a web page: the download gave a page in place of the file"),
    (b"<html", "it is a web page: the download gave a page in place of the file"),
)
_PACKED = (".parquet", ".arrow", ".tar")
_ABOUT = ("dataset_info.json", "dataset_infos.json")
_SHOWN = 5
_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"


class NotInstructionData(DatasetError):
    """A file that is known, and is a benchmark or another thing that no prompts are made of."""


def detect(path: Path, image_root: Path | None = None, only: str | None = None) -> AnySource:
    """The source that a file or folder is, its settings guessed from what it holds.

    A folder as the hub gives it, a card and one folder of tables or shards, stands for that one. `image_root` defaults
    to the file's own folder, or `images` in it where the first image lies there. `only` is one of READERS and skips the
    guess of the format. Raises DatasetError for what can't be read or is not known, saying what
    was looked for, and NotInstructionData for a benchmark.
    """
    if only is not None and only not in READERS:
        raise DatasetError(f"{only!r} is no format; there are {', '.join(READERS)}")
    try:
        if path.is_dir():
            path = _with_files(path)
            kind, layout = _of_folder(path, only)
        elif path.exists():
            kind, layout = _of_file(path, only)
        else:
            raise DatasetError(f"{path}: no such file or folder; correct the path")
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error.strerror or error}") from None
    named = layout.pop("first_image", None)
    return kind(path=path, image_root=image_root or _image_root(path, named), **layout)


Guess = tuple[Callable[..., AnySource], dict]
"""A settings class and its fields beside path and image_root. `first_image`: the first image that the data names, ''
for none; left out where the data holds its images."""


def _of_file(path: Path, only: str | None) -> Guess:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        raise DatasetError(f"{path}: the file is empty; was the download cut short?")
    for signature, problem in _FOREIGN:
        if head.startswith(signature):
            raise DatasetError(f"{path}: {problem}")
    if only in ("rlaif_v", "huggingface") or head.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM)):
        return _of_table(path, only)
    if only == "webdataset" or (only is None and _is_tar(path)):
        return WebDatasetSource, {"format": "webdataset"}
    if only is not None:
        settings = JsonLinesSource if only == "jsonl" else JsonArraySource
        return settings, {"format": only, "first_image": first_image(path, lines=only == "jsonl")}
    found = of_text(path, head)
    if isinstance(found, BenchmarkLayout):
        raise _refused(path, found)
    if isinstance(found, str):
        raise _unknown(path, found)
    kind, named = found
    settings = JsonLinesSource if kind == "jsonl" else JsonArraySource
    return settings, {"format": kind, "first_image": named}


def _with_files(path: Path) -> Path:
    """The folder, or the one folder in it that has what it lacks: tables or tar shards.

    Raises DatasetError where several have them: a source is one.
    """
    if _has_files(path) or _texts(path):
        return path
    inside = [folder for folder in sorted(path.iterdir()) if not folder.name.startswith(".") and folder.is_dir()]
    having = [folder for folder in inside if _has_files(folder)]
    if len(having) > 1:
        names = ", ".join(folder.name for folder in having[:_SHOWN]) + (", ..." if len(having) > _SHOWN else "")
        raise DatasetError(f"{path}: {len(having)} of its folders have tables or tar shards; name one of them: {names}")
    return having[0] if having else path


def _has_files(folder: Path) -> bool:
    names = [item.name.lower() for item in folder.iterdir()]
    return not {"dataset_dict.json", "state.json"}.isdisjoint(names) or any(
        name.endswith(_PACKED) and not name.startswith(".") for name in names
    )


def _texts(folder: Path) -> list[str]:
    """Names of the JSON files in a folder, but for those about a dataset."""
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith((".json", ".jsonl")))
    return [name for name in names if name not in _ABOUT]


def _of_folder(path: Path, only: str | None) -> Guess:
    names = sorted(item.name for item in path.iterdir())
    if "dataset_dict.json" in names or "state.json" in names or only == "huggingface":
        return _of_table(path, only)
    for suffix in _PACKED:
        of_kind = [name for name in names if name.lower().endswith(suffix)]
        if of_kind and suffix == ".tar":
            return WebDatasetSource, {"format": "webdataset"}
        if of_kind:
            return _of_table(path, only)
    if _is_mme(path, names):
        raise _refused(path, MME_FOLDER)
    texts = _texts(path)
    hint = f"; name one of its files: {', '.join(texts[:_SHOWN])}" if texts else ""
    raise _unknown(path, f"a folder without Parquet, Arrow or tar files{hint}")


def _of_table(path: Path, only: str | None) -> Guess:
    schema, split = schema_of(path)
    found = of_schema(schema)
    if isinstance(found, BenchmarkLayout):
        raise _refused(path, found)
    if only == "rlaif_v" or (only is None and found == "rlaif_v"):
        return RlaifVSource, {"format": "rlaif_v"}
    if isinstance(found, str):
        reason = "the columns are RLAIF-V's: leave out --format, or use rlaif_v" if found == "rlaif_v" else found
        raise _unknown(path, reason)
    return HuggingFaceSource, {"format": "huggingface", **found, **({"split": split} if split else {})}


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


def _is_mme(path: Path, names: list[str]) -> bool:
    """Whether the folder is MME's release or one of its categories: text files of questions with Yes or No."""
    for folder in [path, *(path / name for name in names if (path / name).is_dir())][:40]:
        for file in sorted([*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")])[:3]:
            lines = file.read_bytes()[:4096].splitlines()[:2]
            if len(lines) == 2 and all(line.rsplit(b"\t", 1)[-1].strip() in (b"Yes", b"No") for line in lines):
                return True
    return False


def _image_root(path: Path, named: str | None) -> Path:
    folder = path if path.is_dir() else path.parent
    if named is None:
        # Where the data holds its images they are unpacked, and mustn't lie among the files that are read.
        return folder.parent / f"{path.stem}_images" if path.is_dir() else folder / f"{path.stem}_images"
    roots = (folder, folder / "images", folder.parent / "images", folder.parent)
    inside = not named.startswith("/") and ".." not in named.split("/")
    return next((root for root in roots if inside and (root / named).is_file()), folder)


def _refused(path: Path, benchmark: BenchmarkLayout) -> NotInstructionData:
    return NotInstructionData(f"{path}: this is {benchmark.name}, not instruction data: {benchmark.hint}")


def _unknown(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path}: {what}. Looked for: {LOOKED_FOR}")
