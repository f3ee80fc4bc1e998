"""Dagster's event log as the commands open it: one that can't be read is a sentence, not a stack trace."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from m3po_dagster.cli.options import fail
from m3po_dagster.home import dagster_home, ensure_home

if TYPE_CHECKING:
    import dagster as dg

WHY_LENGTH = 200


class EventLogError(Exception):
    """The event log can't be read; the message says where it lies and why."""


@contextmanager
def opened_event_log() -> "Iterator[dg.DagsterInstance]":
    """The instance of DAGSTER_HOME, once its event log answers. Raises EventLogError where it doesn't."""
    import dagster as dg
    import yaml
    from dagster_shared.check import CheckError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        ensure_home()
        instance = dg.DagsterInstance.get()
        # A database is opened when it is first asked: runs and events lie in one each.
        instance.get_runs(limit=1)
        instance.all_asset_keys()
    except (dg.DagsterError, CheckError, SQLAlchemyError, yaml.YAMLError, OSError) as error:
        raise EventLogError(f"Dagster's event log in {dagster_home()} can't be read: {_said(error)}") from error
    with instance:
        yield instance


@contextmanager
def event_log() -> "Iterator[dg.DagsterInstance]":
    """`opened_event_log` for a command that can't do without: it ends with a sentence and exit status 1.

    So it does when the log's database goes away, or its disk is full, while the command is at work.
    """
    from sqlalchemy.exc import SQLAlchemyError

    with ExitStack() as stack:
        try:
            instance = stack.enter_context(opened_event_log())
        except EventLogError as error:
            what = "Mend dagster.yaml, or move the folder away: everything in the store is found again."
            fail(f"{error}. {what}", status=1)
        try:
            yield instance
        except SQLAlchemyError as error:
            fail(
                f"Dagster's event log in {dagster_home()} stopped answering: {_said(error)}. Finished work is kept: "
                "once it answers again (its database is up, its disk has room), the same command goes on from there",
                status=1,
            )


def _said(error: Exception) -> str:
    """What the database says, without the statement and the link that SQLAlchemy puts around it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:WHY_LENGTH]
