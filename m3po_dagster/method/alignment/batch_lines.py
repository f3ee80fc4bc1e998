"""The lines of a batch's files: the requests that are sent, and what became of each."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from m3po_dagster.method.endpoint import BUSY

CHAT = "/v1/chat/completions"
EXPIRED, CANCELLED = "expired", "cancelled"
TOO_LARGE, NO_LINE = "too large for a batch", "no line in the batch's files"
_CODES = {"batch_expired": EXPIRED, "batch_cancelled": CANCELLED}


@dataclass(frozen=True)
class BatchFailure:
    """Why a request of a batch has no reply.

    `reason` is short and countable: "HTTP 400", "expired", "cancelled", "too large for a batch", "no line in the
    batch's files", or the service's own code. `status` is the HTTP status of the request, None where it was not run;
    `said` the service's words without the endpoint's key.
    """

    reason: str
    status: int | None = None
    said: str = ""

    @property
    def may_pass(self) -> bool:
        """Whether another try may fare better: it was not run in time, or met a busy or failing service."""
        if self.status is not None:
            return self.status in BUSY or self.status >= 500
        return self.reason not in (CANCELLED, TOO_LARGE, NO_LINE)


def write_requests(
    file: Path, keys: Iterable[str], bodies: Mapping[str, dict], max_bytes: int
) -> tuple[list[str], list[str]]:
    """Writes requests until the file is full: the keys that are in it, and those met on the way that no file holds."""
    fitting, too_large, size = [], [], 0
    with open(file, "wb") as requests:
        for key in keys:
            line = {"custom_id": key, "method": "POST", "url": CHAT, "body": bodies[key]}
            # ASCII alone: a service may take the line breaks of Unicode for the end of a line.
            written = json.dumps(line, separators=(",", ":")).encode() + b"\n"
            if len(written) > max_bytes:
                too_large.append(key)
                continue
            size += len(written)
            if size > max_bytes:
                break
            requests.write(written)
            fitting.append(key)
    return fitting, too_large


def outcomes(*files: Path) -> Iterator[tuple[str, bytes | BatchFailure]]:
    """Key and reply body, or why there is none, of every line of the output and error files that are there.

    Lines that say neither are left out: their requests are without a line.
    """
    for path in files:
        if not path.exists():
            continue
        with open(path, "rb") as lines:
            for line in lines:
                if (found := _outcome(line)) is not None:
                    yield found


def _outcome(line: bytes) -> tuple[str, bytes | BatchFailure] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        return None
    key, response, error = found["custom_id"], found.get("response"), found.get("error")
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        status, body = response["status_code"], response.get("body")
        if status == 200 and body is not None:
            return key, json.dumps(body, ensure_ascii=False).encode()
        return key, BatchFailure(f"HTTP {status}", status, _words(body))
    if isinstance(error, dict):
        code = str(error.get("code") or "unknown error")
        return key, BatchFailure(_CODES.get(code, code), None, _words(error))
    return None


def _words(said: object) -> str:
    """The message in an error body, or all of it."""
    if isinstance(said, dict) and isinstance(said.get("error"), dict):
        said = said["error"]
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        return said["message"]
    return "" if said is None else json.dumps(said, ensure_ascii=False)
