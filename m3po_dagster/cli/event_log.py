"""Dagster's event log as the commands open it: one that can't be read is a sentence, not a stack trace."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from m3po_dagster.cli.options import fail
from m3po_dagster.home import dagster_home, ensure_home

if TYPE_CHECKING:
    import dagster as dg

WHY_LENGTH = 200
LOCK = ".m3po-lock"


class EventLogError(Exception):
    """The event log can't be read; the message says where it lies and why."""


@contextmanager
def opened_event_log() -> "Iterator[dg.DagsterInstance]":
    """The instance of DAGSTER_HOME, once its event log answers. Raises EventLogError where it doesn't."""
    import dagster as dg
    import yaml
    from alembic.util import CommandError
    from dagster_shared.check import CheckError

    try:
        with _alone(ensure_home()):
            instance = dg.DagsterInstance.get()
            # A database is opened when it is first asked: runs and events lie in one each.
            instance.get_runs(limit=1)
            instance.all_asset_keys()
    except Exception as error:
        known = isinstance(error, dg.DagsterError | CheckError | CommandError | yaml.YAMLError | OSError)
        if not known and not _of_database(error):
            raise
        raise EventLogError(f"Dagster's event log in {dagster_home()} can't be read: {_said(error)}") from error
    with instance:
        yield instance


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time: two that make the databases of a new home at once leave them with two versions.

    Where nothing may be written, none is made here: the home of a container, whose event log lies in Postgres.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(home / LOCK, "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
        yield


@contextmanager
def event_log() -> "Iterator[dg.DagsterInstance]":
    """`opened_event_log` for a command that can't do without: it ends with a sentence and exit status 1.

    So it does when the log's database goes away, or its disk is full, while the command is at work.
    """
    with ExitStack() as stack:
        try:
            instance = stack.enter_context(opened_event_log())
        except EventLogError as error:
            what = "Mend dagster.yaml, or move the folder away: everything in the store is found again."
            fail(f"{error}. {what}", status=1)
        try:
            yield instance
        except Exception as error:
            if not _of_database(error):
                raise
            fail(
                f"Dagster's event log in {dagster_home()} stopped answering: {_said(error)}. Finished work is kept: "
                "once it answers again (its database is up, its disk has room), the same command goes on from there",
                status=1,
            )


def _of_database(error: BaseException | None) -> bool:
    """Whether a database is behind an error: dagster-postgres puts one of its own around it."""
    from sqlalchemy.exc import SQLAlchemyError

    while error is not None and not isinstance(error, SQLAlchemyError):
        error = error.__cause__
    return error is not None


def _said(error: Exception) -> str:
    """What the database says, without the statement and the link that SQLAlchemy puts around it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:WHY_LENGTH]
