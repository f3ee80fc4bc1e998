"""Options that several commands share, and the way errors end a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from m3po_dagster.storage.s3 import is_s3

StudyOption = Annotated[
    Path,
    typer.Option("--study", envvar="M3PO_STUDY", help="The study file.", show_default=True),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for a script to read.")]

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="M3PO_STORE", help="Folder or URL (file://, s3://) of the store.", show_default=True
    ),
]

USAGE_ERROR = 2
"""Exit status for what the user must correct; 1 is for work that failed."""


def fail(message: str, status: int = USAGE_ERROR) -> NoReturn:
    """Prints the message on standard error and exits."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


def where_missing(path: str) -> str:
    """In which words a file of a study is missing: of a bucket or of this machine."""
    return "not in the bucket" if is_s3(path) else "not on this machine"


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Ends the command with a sentence that names --out where it can't be written."""
    try:
        yield
    except FileExistsError:
        fail(f"--out {out} is there and no folder: name another one", status=1)
    except OSError as error:
        fail(f"--out {out} can't be written ({error.strerror}): name another folder", status=1)


@contextmanager
def explained(*errors: type[Exception], status: int = USAGE_ERROR) -> Iterator[None]:
    """Turns the named errors into their message on standard error and an exit status."""
    try:
        yield
    except errors as error:
        fail(str(error), status)
