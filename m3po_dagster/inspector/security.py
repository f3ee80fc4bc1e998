"""What stands between the pages and the rest of the browser: headers, the Host check, the check of every POST.

The server listens on 127.0.0.1 alone, but any web page the user visits can send requests there. A page of another
origin can't read the answers; a host name that is made to point at 127.0.0.1 (DNS rebinding) is refused by its Host
header; a form sent from elsewhere is refused by its Origin and for want of the token.
"""

import hmac
import secrets
from collections.abc import Iterable
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self' data:",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it a browser sends a form's Origin as null.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
LARGEST_FORM = 1 << 16
METHODS = ("GET", "HEAD", "POST")


class Guard:
    """ASGI middleware: adds the headers to every response and refuses requests that come from elsewhere."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        app = PlainTextResponse(refused[1] + "\n", refused[0]) if refused else self.app
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        if headers.getlist("host") not in [[host] for host in self.hosts]:
            return 421, f"This server answers to {' and '.join(sorted(self.hosts))} only."
        if method not in METHODS:
            return 405, "Only GET, HEAD and POST are answered."
        if method == "POST" and headers.get("origin") not in {f"http://{host}" for host in self.hosts}:
            return 403, "Forms are taken from this server's own pages only."
        return None


class Token:
    """A secret that the server's own forms carry; new with every start."""

    def __init__(self) -> None:
        self.value = secrets.token_urlsafe(32)

    def fits(self, given: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(self.value.encode(), given.encode())


class FormError(ValueError):
    """A form that is not taken; the message says why."""


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a URL-encoded form. Raises FormError for another type, a large body or a field given twice."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormError("only URL-encoded forms are taken")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM:
            raise FormError(f"the form has more than {LARGEST_FORM} bytes")
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=50)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise FormError("a field stands twice in the form")
    return fields
