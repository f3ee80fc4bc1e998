"""A real HTTP server on 127.0.0.1 for tests: counts what comes in, how much of it at once; can fail on purpose."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """What goes over the wire, `delay` seconds late; after `cut` bytes of the body the connection is dropped."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0


def error(status: int, message: str, **headers: str) -> Reply:
    """An error as OpenAI-compatible servers word it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), named)


class LoopbackServer:
    """A context manager; `answer` makes the replies. `requests` counts, `most_at_once` is the most met together."""

    def __init__(self) -> None:
        self.requests = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self._at_once = 0

    @property
    def base_url(self) -> str:
        """What a study's `base_url` says."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The reply to one request; header names are in lower case."""
        raise NotImplementedError

    def answer_other(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """The reply to a GET or a DELETE; `path` with its query."""
        return error(405, f"{method} is not served")

    def reply(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answers one POST, counted."""
        with self._counted():
            return self.answer(path, headers, body)

    def reply_other(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """Answers one GET or DELETE, counted."""
        with self._counted():
            return self.answer_other(method, path, headers)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self.lock:
            self.requests += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self.lock:
                self._at_once -= 1


def _handler(server: LoopbackServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body are two writes; held back until the first is acknowledged, each reply takes 40 ms.
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(server.reply(self.path, self._names(), body))

        def do_GET(self) -> None:
            self._send(server.reply_other(self.command, self.path, self._names()))

        do_DELETE = do_GET

        def _names(self) -> dict[str, str]:
            return {name.lower(): value for name, value in self.headers.items()}

        def _send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            try:
                self.end_headers()
                self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
            except ConnectionError:
                self.close_connection = True  # whoever asked has given up
            if reply.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler
