"""What the ledger refuses to do, each error with the place it happened at and what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LedgerError(RuntimeError):
    """The ledger can't do what was asked; the message names the path and what to do."""


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a LedgerError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            advice = "free some space and run again: what was kept before is not asked again"
        else:
            advice = "give this user write access to a local folder on a healthy disk, or choose another store"
        raise LedgerError(f"can't {action} {path}: {error.strerror or error}; {advice}") from error
