"""The files of a source, in the order they are read."""

from collections.abc import Sequence
from pathlib import Path

from m3po_dagster.datasets.record import DatasetError


def one_file(path: Path) -> list[Path]:
    """The path, if it is a file. Raises DatasetError."""
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder; the source's path names one file in this format")
    _require(path)
    return [path]


def files_of(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The path, if it is a file, or the files of the folder that end so, in order of their names.

    Folders within it are not entered, and names that start with a dot are left out. Raises DatasetError for none.
    """
    _require(path)
    if not path.is_dir():
        return [path]
    try:
        files = sorted(
            (file for file in path.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")),
            key=lambda file: file.name,
        )
    except OSError as error:
        raise DatasetError(f"{path}: can't be listed: {error}") from None
    files = [file for file in files if file.is_file()]
    if not files:
        raise DatasetError(f"{path}: no {' or '.join(suffixes)} file in this folder; folders in it are not searched")
    return files


def _require(path: Path) -> None:
    if not path.exists():
        raise DatasetError(f"{path}: no such dataset file; correct the source's path")
