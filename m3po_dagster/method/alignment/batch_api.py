"""Requests to a served judge through the Batch API: half the price, within a day, nothing asked twice.

A batch lives at the service, whatever becomes of the process that submitted it. So every step is written down before
the service sees it (batch_record), and a process that starts again, or works beside another, finds which of its
requests are in a batch already: those are waited for, the rest is submitted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from m3po_dagster.method.alignment.batch_asking import Asking
from m3po_dagster.method.alignment.batch_lines import BatchFailure
from m3po_dagster.method.alignment.batch_record import KEYS, REPLIED, Asker, BatchRecords
from m3po_dagster.method.alignment.batch_service import BatchService
from m3po_dagster.method.alignment.batch_settings import BatchSettings
from m3po_dagster.method.endpoint import Endpoint

KEY = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""A key is a custom_id, and some services take no longer one."""


class BatchQueue:
    """Asks an endpoint through its Batch API. Safe with several processes and threads on one folder."""

    def __init__(
        self,
        endpoint: Endpoint,
        folder: Path,
        settings: BatchSettings,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`folder` holds the records of the batches; `progress` gets how many of the requests are done, of how many."""
        self._settings, self._progress = settings, progress
        self._records = BatchRecords(folder)
        self._service = BatchService(endpoint, min(0.5, settings.poll_seconds))

    def claimed(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are in a batch already, under way or with a reply: asking for them submits nothing."""
        endpoint, wanted = self._service.endpoint.settings, set(keys)
        found: set[str] = set()
        with self._records.claiming():
            for record in self._records.all(endpoint.base_url, endpoint.model):
                found |= wanted.intersection(
                    self._records.keys(record.id, REPLIED if record.step == "collected" else KEYS)
                )
        return found

    def ask(self, bodies: Mapping[str, dict], asker: Asker) -> Iterator[tuple[str, bytes | BatchFailure]]:
        """Every key of `bodies` once, as its batch ends: the body of the reply, or why there is none.

        `bodies` maps a key to the body of a chat completion request; a body is looked up when its file is written, so a
        lazy mapping keeps memory flat. **A key stands for one reply for good**: a reply that a batch has is given again
        and asked for never, so another try of the same question, a repair too, needs a key of its own. A failure is no
        reply; the key is free again.

        Raises ValueError for a key that is no custom_id, BatchRejected when the service won't run a batch (its words
        name the line), EndpointError when it can't be reached or keeps a batch beyond `max_wait_hours`. Whatever ends
        this, the batches go on at the service, and the next `ask` for their keys collects them.
        """
        for key in bodies:
            if not KEY.fullmatch(key):
                raise ValueError(f"{key!r} can't name a request of a batch: give 1 to 64 of A-Z a-z 0-9 _ . : -")
        yield from Asking(self._service, self._records, self._settings, bodies, asker, self._progress).run()
