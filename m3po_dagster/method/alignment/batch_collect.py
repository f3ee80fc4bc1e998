"""The files of a batch that has ended: fetched once, kept, and read again."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3po_dagster.method.alignment.batch_lines import outcomes
from m3po_dagster.method.alignment.batch_record import ERRORS, OUTPUT, REPLIED, REQUESTS, HeldRecord
from m3po_dagster.method.alignment.batch_service import BatchService, ServedBatch


def collect(service: BatchService, held: HeldRecord, keys: Sequence[str], batch: ServedBatch) -> None:
    """Fetches what became of the requests of a batch, `keys`; the record says so when all of it is on disk."""
    for file_id, name in ((batch.output_file_id, OUTPUT), (batch.error_file_id, ERRORS)):
        if file_id:
            unfinished = held.folder / f"{name}.tmp"
            service.download(file_id, unfinished)
            os.replace(unfinished, held.folder / name)
    asked = set(keys)
    found = outcomes(held.folder / OUTPUT, held.folder / ERRORS)
    replied = dict.fromkeys(key for key, outcome in found if key in asked and isinstance(outcome, bytes))
    held.write_keys(list(replied), REPLIED)
    held.save(step="collected", status=batch.status, answered=len(replied))
    (held.folder / REQUESTS).unlink(missing_ok=True)


def kept_replies(folder: Path, keys: dict[str, None]) -> Iterator[tuple[str, bytes]]:
    """The replies to `keys` in the folder of a batch that was collected earlier.

    Raises ValueError when its files lack some of them.
    """
    left = dict(keys)
    for key, outcome in outcomes(folder / OUTPUT, folder / ERRORS):
        if key in left and isinstance(outcome, bytes):
            del left[key]
            yield key, outcome
    if left:
        raise ValueError(
            f"{folder} has lost {len(left)} replies of a batch that was collected ({next(iter(left))}, ...); "
            "bring its files back, or remove the folder to ask for all of them anew"
        )
