"""A Batch API on loopback, as OpenAI's speaks: /v1/files and /v1/batches, in memory.

    with ServedBatches() as service:
        BatchQueue(Endpoint(EndpointSettings(base_url=service.base_url, model=service.model), "me"), folder, settings)

Each look at a batch moves it one status on. `paid` counts how often each custom_id was run to a reply, which is what a
user pays for. What goes wrong is said beforehand: by request in `expiring` and `spoiled`, by call in `trouble`.
"""

import email
import itertools
import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.loopback import LoopbackServer, Reply, error

ENDED = ("completed", "failed", "expired", "cancelled")
EXPIRED = {"code": "batch_expired", "message": "This request could not be executed before the completion window."}
CANCELLED = {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."}


@dataclass
class Batch:
    """One batch: what it was made of, how far it is, and a line for every request that was tried."""

    id: str
    input_file_id: str
    metadata: Mapping[str, str]
    window: str
    lines: list[dict]
    status: str = "validating"
    problems: list[dict] = field(default_factory=list)
    output: list[dict] = field(default_factory=list)
    errors: list[dict] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None


def said(body: dict) -> str:
    """The last words of a chat completion request."""
    return body["messages"][-1]["content"]


def completion(body: dict) -> dict:
    """A chat completion that says what was asked."""
    message = {"role": "assistant", "content": f"reply to {said(body)}"}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


class ServedBatches(LoopbackServer):
    """The server; a context manager.

    expiring      custom_id -> times that it expires before it is run
    spoiled       custom_id -> statuses, in order, that its next tries end with in place of a reply
    missing       custom_ids that get no line in any file
    trouble       calls that go wrong: ("POST", "/batches", what) with what "before" (dropped, nothing happened),
                  "after" (it happened, no reply came), or a status; each once, in order
    invalid       a problem of a line, found as the batch is validated, None for a good line
    room          requests that may be in open batches at once, None for any number
    running       looks that a batch is in progress for
    """

    def __init__(
        self,
        answer_line: Callable[[dict], dict] = completion,
        model: str = "loopback-batch",
        key: str | None = None,
        page: int = 100,
    ) -> None:
        super().__init__()
        self.answer_line, self.model, self.key, self.page = answer_line, model, key, page
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: dict[str, Batch] = {}
        self.paid: Counter[str] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.expiring: Counter[str] = Counter()
        self.spoiled: defaultdict[str, list[int]] = defaultdict(list)
        self.missing: set[str] = set()
        self.trouble: deque[tuple[str, str, str | int]] = deque()
        self.invalid: Callable[[dict], dict | None] = lambda line: None
        self.room: int | None = None
        self.running = 1
        self._looks: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        return self._served("POST", path, headers, body)

    def answer_other(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        return self._served(method, path, headers, b"")

    def cancel(self, batch: Batch) -> None:
        """What its owner does who cancels it: what was run is given, the rest is not."""
        with self.lock:
            tried = {line["custom_id"] for line in batch.output + batch.errors}
            for line in batch.lines:
                if line["custom_id"] not in tried:
                    batch.errors.append(self._line(line, None, CANCELLED))
            self._end(batch, "cancelled")

    def _served(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        url = urlsplit(path.removeprefix("/v1"))
        parts = url.path.strip("/").split("/")
        # The kind of call, ids left out: /batches, /batches/*, /files/*/content.
        kind = "/" + "/".join("*" if number == 1 else part for number, part in enumerate(parts))
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return error(401, f"wrong key: {headers.get('authorization')}")
        with self.lock:
            self.calls[method, kind] += 1
            what = None
            if self.trouble and self.trouble[0][:2] == (method, kind):
                what = self.trouble.popleft()[2]
            if what == "before":
                return Reply(cut=0, body=b"dropped")
            if isinstance(what, int):
                return error(what, f"no {kind} today, {headers.get('authorization')}", retry_after_ms="1")
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            reply = self._do(method, kind, parts, query, headers, body)
            return Reply(reply.status, reply.body, reply.headers, cut=0) if what == "after" else reply

    def _do(
        self, method: str, kind: str, parts: list[str], query: dict[str, str], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        match method, kind:
            case "POST", "/files":
                return self._upload(headers, body)
            case "GET", "/files":
                files = [self._file(file_id) for file_id in reversed(self.files)]
                return self._listed(files, query)
            case "DELETE", "/files/*" if parts[1] in self.files:
                del self.files[parts[1]]
                return _json({"id": parts[1], "object": "file", "deleted": True})
            case "GET", "/files/*/content" if parts[1] in self.files:
                return Reply(body=self.files[parts[1]][1], headers={"Content-Type": "application/octet-stream"})
            case "POST", "/batches":
                return self._create(json.loads(body))
            case "GET", "/batches":
                return self._listed([self._shown(batch) for batch in reversed(self.batches.values())], query)
            case "GET", "/batches/*" if parts[1] in self.batches:
                batch = self.batches[parts[1]]
                self._advance(batch)
                return _json(self._shown(batch))
        return error(404, f"no {method} {'/'.join(parts)}")

    def _upload(self, headers: Mapping[str, str], body: bytes) -> Reply:
        form = email.message_from_bytes(b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body)
        fields = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
        if fields["purpose"].get_payload() != "batch":
            return error(400, "purpose must be batch")
        file = fields["file"]
        file_id = f"file-{next(self._numbers)}"
        self.files[file_id] = (file.get_filename(), file.get_payload(decode=True))
        return _json(self._file(file_id))

    def _file(self, file_id: str) -> dict:
        name, content = self.files[file_id]
        return {"id": file_id, "object": "file", "filename": name, "bytes": len(content), "purpose": "batch"}

    def _listed(self, items: list[dict], query: dict[str, str]) -> Reply:
        ids = [item["id"] for item in items]
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        limit = min(int(query.get("limit", 20)), self.page)
        return _json({"object": "list", "data": items[start : start + limit], "has_more": len(items) > start + limit})

    def _create(self, asked: dict) -> Reply:
        if asked["endpoint"] != "/v1/chat/completions" or not asked["completion_window"]:
            return error(400, f"no such endpoint or window: {asked}")
        if asked["input_file_id"] not in self.files:
            return error(400, f"no such file: {asked['input_file_id']}")
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]][1].splitlines()]
        batch = Batch(
            f"batch_{next(self._numbers)}",
            asked["input_file_id"],
            asked.get("metadata") or {},
            asked["completion_window"],
            lines,
        )
        self.batches[batch.id] = batch
        return _json(self._shown(batch))

    def _advance(self, batch: Batch) -> None:
        """One status on."""
        if batch.status == "validating":
            batch.problems = self._problems(batch)
            batch.status = "failed" if batch.problems else "in_progress"
            # Half of it is run by now.
            if not batch.problems:
                self._run(batch, batch.lines[: len(batch.lines) // 2])
        elif batch.status == "in_progress":
            self._looks[batch.id] += 1
            if self._looks[batch.id] >= self.running:
                self._run(batch, batch.lines[len(batch.lines) // 2 :])
                batch.status = "finalizing"
        elif batch.status == "finalizing":
            expired = any(line["error"] == EXPIRED for line in batch.errors)
            self._end(batch, "expired" if expired else "completed")

    def _problems(self, batch: Batch) -> list[dict]:
        open_lines = sum(len(one.lines) for one in self.batches.values() if one.status not in ("validating", *ENDED))
        if self.room is not None and open_lines + len(batch.lines) > self.room:
            message = f"Enqueued token limit reached for {self.model}."
            return [{"code": "token_limit_exceeded", "message": message, "line": None, "param": None}]
        counts = Counter(line["custom_id"] for line in batch.lines)
        found = []
        for number, line in enumerate(batch.lines, 1):
            wrong = self.invalid(line)
            if counts[line["custom_id"]] > 1:
                wrong = {"code": "duplicate_custom_id", "message": "it is there twice", "param": "custom_id"}
            elif (line["method"], line["url"]) != ("POST", "/v1/chat/completions"):
                wrong = {"code": "invalid_url", "message": "the url is another", "param": "url"}
            elif line["body"]["model"] != self.model:
                wrong = {"code": "model_not_found", "message": "no such model", "param": "body.model"}
            if wrong:
                found.append({**wrong, "line": number})
        return found

    def _run(self, batch: Batch, lines: list[dict]) -> None:
        for line in lines:
            key = line["custom_id"]
            if key in self.missing:
                continue
            if self.expiring[key]:
                self.expiring[key] -= 1
                batch.errors.append(self._line(line, None, EXPIRED))
            elif self.spoiled[key]:
                status = self.spoiled[key].pop(0)
                body = {"error": {"message": f"no: {status}, Bearer {self.key}", "type": "error"}}
                batch.errors.append(self._line(line, {"status_code": status, "request_id": "r", "body": body}, None))
            else:
                self.paid[key] += 1
                body = self.answer_line(line["body"])
                batch.output.append(self._line(line, {"status_code": 200, "request_id": "r", "body": body}, None))

    def _line(self, line: dict, response: dict | None, problem: dict | None) -> dict:
        number = next(self._numbers)
        return {"id": f"batch_req_{number}", "custom_id": line["custom_id"], "response": response, "error": problem}

    def _end(self, batch: Batch, status: str) -> None:
        batch.status = status
        # The order of the lines is the service's own.
        if batch.output:
            batch.output_file_id = self._stored(f"{batch.id}_output.jsonl", batch.output[::-1])
        if batch.errors:
            batch.error_file_id = self._stored(f"{batch.id}_error.jsonl", batch.errors[::-1])

    def _stored(self, name: str, lines: list[dict]) -> str:
        file_id = f"file-{next(self._numbers)}"
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.files[file_id] = (name, content.encode())
        return file_id

    def _shown(self, batch: Batch) -> dict:
        counts = {"total": len(batch.lines), "completed": len(batch.output), "failed": len(batch.errors)}
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "errors": {"object": "list", "data": batch.problems} if batch.problems else None,
            "input_file_id": batch.input_file_id,
            "completion_window": batch.window,
            "status": batch.status,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": 1,
            "metadata": batch.metadata,
            "request_counts": counts,
        }


def _json(body: dict) -> Reply:
    return Reply(body=json.dumps(body).encode())
