"""The Batch API of an OpenAI-compatible endpoint: files, batches, and what the service says of them.

A batch that was made twice is paid twice, and its making can get through without a reply. So nothing here is repeated
blindly: whatever may have got through is looked for first, by the name that was given to it.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m3po_dagster.method.alignment.batch_lines import CHAT
from m3po_dagster.method.endpoint import MESSAGE_LENGTH, Endpoint, EndpointError, Refused, Unanswered

RECORD = "m3po"
"""The key of a batch's metadata that holds the id of its record."""
ENDED = ("completed", "failed", "expired", "cancelled")
QUEUE_FULL = "token_limit_exceeded"
"""The code of a batch that found the account's queue full."""
PAGE = 100
PROBLEMS_SHOWN = 3
# What a service may ask to be left alone for, at most, in seconds.
LONGEST_WAIT = 600.0

_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)


class BatchRejected(EndpointError):
    """The service won't run a batch as it stands: its file, a line of it, or the account's limits."""


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")


class RequestCounts(_Reply):
    """Requests of a batch: all, those with a reply, those that failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Problem(_Reply):
    """Why a batch failed as a whole; `line` counts from 1."""

    code: str | None = None
    message: str | None = None
    line: int | None = None
    param: str | None = None


class _Problems(_Reply):
    data: list[Problem] | None = None


class ServedBatch(_Reply):
    """A batch as the service describes it."""

    id: str = Field(min_length=1)
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: RequestCounts | None = None
    errors: _Problems | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED

    @property
    def problems(self) -> list[Problem]:
        """Why it failed, as far as the service says."""
        return (self.errors and self.errors.data) or []


class _ServedFile(_Reply):
    id: str = Field(min_length=1)
    filename: str | None = None


class _Page(_Reply):
    data: list[dict]
    has_more: bool = False


def may_pass(error: EndpointError) -> bool:
    """Whether an error speaks of a bad moment, not of what was asked."""
    return not isinstance(error, BatchRejected) and (isinstance(error, Unanswered) or error.status is None)


class BatchService:
    """Files and batches at an endpoint. Every method raises EndpointError, Unanswered after the endpoint's retries."""

    def __init__(self, endpoint: Endpoint, first_wait: float) -> None:
        """`first_wait`: seconds before the first repeat of what was not answered; doubled each time."""
        self.endpoint, self._first_wait = endpoint, first_wait

    def upload(self, file: Path, name: str) -> str:
        """The id of an input file, streamed from the disk. Raises BatchRejected when it is not taken."""
        fields = {"purpose": "batch"}

        def send() -> str:
            return self._read(_ServedFile, self.endpoint.upload_once("/files", file, name, fields)).id

        with self._refusals("the file of requests", "lower the batch's max_bytes or max_requests"):
            return self._once(lambda: next(iter(self.files_named(name)), None), send)

    def create(self, record: str, file_id: str, window: str) -> ServedBatch:
        """Starts the batch of a record, which `find` does not find. Raises BatchRejected when it is not taken."""
        body = {
            "input_file_id": file_id,
            "endpoint": CHAT,
            "completion_window": window,
            "metadata": {RECORD: record},
        }

        def send() -> ServedBatch:
            return self._read(ServedBatch, self.endpoint.post_once("/batches", body))

        with self._refusals("the batch", "correct what it names"):
            return self._once(lambda: self.find(record), send)

    def find(self, record: str) -> ServedBatch | None:
        """The batch of a record, whoever started it."""
        for found in self._pages("/batches"):
            if (found.get("metadata") or {}).get(RECORD) == record:
                return self._checked(ServedBatch, found)
        return None

    def retrieve(self, batch_id: str) -> ServedBatch:
        """A batch as it is now."""
        return self._read(ServedBatch, self.endpoint.get(f"/batches/{batch_id}"))

    def files_named(self, name: str) -> list[str]:
        """Ids of the input files with this name."""
        return [
            self._checked(_ServedFile, found).id
            for found in self._pages("/files", purpose="batch")
            if found.get("filename") == name
        ]

    def delete_file(self, file_id: str) -> None:
        """Removes a file from the service; one that is not there any more is no error."""
        try:
            self.endpoint.delete(f"/files/{file_id}")
        except EndpointError as error:
            if error.status != 404:
                raise

    def download(self, file_id: str, target: Path) -> None:
        """A file of the service, line by line to the disk, the endpoint's key taken out of it."""

        def write(pieces: Iterator[bytes]) -> None:
            with open(target, "wb") as file:
                for line in _lines(pieces):
                    text = line.decode("utf-8", errors="replace")
                    file.write(self.endpoint.without_key(text).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

        self.endpoint.read_file(file_id, write)

    def said(self, what: str) -> str:
        """Words of the service as they may be shown: on one line, without the key, not too long."""
        return " ".join(self.endpoint.without_key(what).split())[:MESSAGE_LENGTH]

    def why_failed(self, batch: ServedBatch, keys: Sequence[str]) -> str:
        """What a batch failed of as a whole; `keys` are those of its lines."""
        said = []
        for problem in batch.problems[:PROBLEMS_SHOWN]:
            line = problem.line
            key = f" (request {keys[line - 1]})" if line is not None and 0 < line <= len(keys) else ""
            place = "" if line is None else f"line {line}{key}, "
            said.append(f"{place}{problem.param or ''} {problem.code or ''}: {problem.message or ''}".strip())
        more = f"; and {len(batch.problems) - len(said)} more" if len(batch.problems) > len(said) else ""
        return self.said("; ".join(said) or "it does not say why") + more

    def error(self, what: str) -> EndpointError:
        """The error of an endpoint that does this."""
        return EndpointError(self._sentence(what))

    def rejected(self, what: str) -> BatchRejected:
        """The error of a batch that the service won't run."""
        return BatchRejected(self._sentence(what))

    def _sentence(self, what: str) -> str:
        settings = self.endpoint.settings
        return f"{self.endpoint.who}: {settings.base_url} (model {settings.model!r}) {what}"

    def _once(self, find: Callable[[], _T | None], send: Callable[[], _T]) -> _T:
        wait, failed = self._first_wait, None
        for _ in range(self.endpoint.settings.max_retries + 1):
            try:
                # It may have got through, though no reply did.
                if failed is not None and (found := find()) is not None:
                    return found
                return send()
            except EndpointError as error:
                if not may_pass(error):
                    raise
                failed, asked = error, getattr(error, "retry_after", None) or 0.0
            time.sleep(min(max(wait, asked), LONGEST_WAIT))
            wait *= 2
        if (found := find()) is not None:
            return found
        raise failed

    @contextmanager
    def _refusals(self, what: str, advice: str) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            raise self.rejected(f"refuses {what}: {error}; {advice}") from None
        except EndpointError as error:
            if error.status not in (404, 405):
                raise
            raise self.rejected(f"answers HTTP {error.status} to {what}: has it a Batch API, and this model?") from None

    def _pages(self, path: str, **query: str) -> Iterator[dict]:
        after: dict[str, str] = {}
        while True:
            page = self._read(_Page, self.endpoint.get(path, limit=PAGE, **query, **after))
            yield from page.data
            last = page.data[-1].get("id") if page.data else None
            if not page.has_more or last is None or last == after.get("after"):
                return
            after = {"after": last}

    def _read(self, kind: type[_M], reply: bytes) -> _M:
        try:
            return kind.model_validate_json(reply)
        except ValidationError:
            raise self._unreadable(reply[:MESSAGE_LENGTH].decode("utf-8", errors="replace")) from None

    def _checked(self, kind: type[_M], found: dict) -> _M:
        try:
            return kind.model_validate(found)
        except ValidationError:
            raise self._unreadable(str(found)) from None

    def _unreadable(self, reply: str) -> Unanswered:
        what = self.said(f"answers what is no reply of a Batch API: {reply}")
        return Unanswered(self.endpoint.failure(what), what)


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines; split at line feeds alone, for a reply's text may hold every other kind of line break."""
    rest: list[bytes] = []
    for piece in pieces:
        first, *more = piece.split(b"\n")
        rest.append(first)
        for line in more:
            if whole := b"".join(rest):
                yield whole
            rest = [line]
    if whole := b"".join(rest):
        yield whole
