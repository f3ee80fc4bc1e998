"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ExportError(RuntimeError):
    """Nothing can be exported so; the message says why and what to do."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a folder to fill, beside `out`; it becomes `out` when the block ends, and is removed when it fails.

    Raises ExportError when `out` is a file or a folder that holds anything, or where no folder can be made.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out} is there and no folder: name another one")
    if out.is_dir() and any(out.iterdir()):
        raise ExportError(f"{out} holds files already, and nothing is overwritten: name another folder, or remove it")
    # Resolved first: `--out .` has no name of its own.
    out = out.resolve()
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"--out {out} can't be written ({error.strerror}): name another folder") from None
    try:
        yield draft
        # Takes the place of an empty folder, and fails where somebody has written to it meanwhile.
        os.rename(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
