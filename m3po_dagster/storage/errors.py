"""What the store refuses to do, each error with the place it happened at and what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


class StoreError(RuntimeError):
    """The store can't do what was asked; the message names the path and what to do."""


class Damaged(StoreError):
    """A committed artifact is not what was committed; `key` names it as (asset, partition, fingerprint)."""

    def __init__(self, path: str | Path, key: tuple[str, str, str], reason: str) -> None:
        super().__init__(
            f"{path} can't be read or is damaged ({reason}): `m3po run` sets it aside when it needs it, and makes it "
            "again; `m3po doctor store --repair` sets aside all that is damaged"
        )
        self.key, self.reason = key, reason


class SchemaError(StoreError):
    """A table doesn't have the columns, types, values or keys its schema promises."""


class Busy(StoreError):
    """Another writer holds this fingerprint. `pid`, `host`, `since` are None while it is still signing in."""

    def __init__(self, path: str, pid: int | None, host: str | None, since: str | None) -> None:
        holder = f"process {pid} on {host} since {since}" if pid else "another process"
        super().__init__(f"{path} is being written by {holder}: wait for it, or end it; its finished parts are kept")
        self.pid, self.host, self.since = pid, host, since


@contextmanager
def explained(action: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_SPACE:
            advice = "free some space and run again (finished parts are kept), or choose another store"
        elif error.errno in _NO_PERMISSION:
            advice = "give this user write access, or choose another store with M3PO_STORE"
        else:
            advice = "check that the path is a folder on a healthy disk, or choose another store"
        raise StoreError(f"can't {action} {path}: {reason}; {advice}") from error
