"""An OpenAI-compatible endpoint: its settings, its key, and one request with what can come of it.

The judge and the served generator ask through here, so that keys, redirects, retries and the words of an outage are
the same for both.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from m3po_dagster.settings import Settings

# Statuses that speak of this one request: too large, an image or a text the service won't take.
REFUSED = (400, 413, 422)
# Statuses that stay after every retry where the service is down, or fails at this one request.
BUSY = (408, 409, 429)
NO_KEY = "none"
HIDDEN = "***"
SHORTEST_SECRET = 8
"""Characters of a key from which on it is kept out of whatever an endpoint says."""
MESSAGE_LENGTH = 300

_T = TypeVar("_T")


class EndpointError(ConnectionError):
    """An endpoint that gives nothing: it can't be reached, or refuses the key or the model. The work must stop.

    `status` is the HTTP status it answered with, None where it did not answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Unanswered(EndpointError):
    """A request that met a busy or failing service, or none in time, after every retry; the next may fare better.

    `what` says it without the endpoint's address; `retry_after` is how many seconds it asked to be left alone.
    """

    def __init__(self, message: str, what: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.what, self.retry_after = what, retry_after


class Refused(ValueError):
    """The endpoint won't take this one request; `status` is its HTTP status, `said` its words without the key."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}: {said}")
        self.status, self.said = status, said


class EndpointSettings(Settings):
    """Where an endpoint is, how it is unlocked, and how patiently it is asked."""

    model: str = Field(min_length=1, description="name of the model at the endpoint")
    base_url: str = Field(
        description="address of the endpoint up to and with its version, for example http://127.0.0.1:8000/v1"
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable that holds the key; null for an endpoint without one",
    )
    timeout: float = Field(60.0, gt=0, le=3600, description="seconds to wait for one reply")
    max_retries: int = Field(
        5,
        ge=0,
        le=20,
        description="repeats of a request that met no answer, a busy endpoint (429, its Retry-After is kept) or a 5xx",
    )
    max_parallel: int = Field(8, ge=1, le=1024, description="requests in flight at once")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        # urlsplit's own errors would say the value again.
        try:
            parts = urlsplit(value)
            plain = parts.port != 0 and not (parts.query or parts.fragment or "@" in value)
        except ValueError:
            plain = False
        if not plain:
            raise ValueError("give the plain address: a key belongs in the variable that api_key_env names")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an address that starts with http:// or https://")
        return value.rstrip("/")


class Endpoint:
    """The client of one endpoint; `who` names in errors who asks. Safe to use from many threads.

    The openai client does the retries: exponential backoff with jitter, Retry-After kept up to two minutes, on 408,
    409, 429, 5xx, a lost connection and a timeout.
    """

    def __init__(self, settings: EndpointSettings, who: str, sent: Callable[[], None] | None = None) -> None:
        """Asks nothing yet; `sent` is called for every request that leaves, retries too, from any thread.

        Raises ValueError when the key's variable is not set, or holds what is no key.
        """
        from openai import DefaultHttpxClient, OpenAI

        self.settings, self.who = settings, who
        self._key = _key(settings, who)
        self._client = OpenAI(
            base_url=settings.base_url,
            api_key=self._key or NO_KEY,
            timeout=settings.timeout,
            max_retries=settings.max_retries,
            # A redirect would take the image and the answer to a place that the study does not name.
            http_client=DefaultHttpxClient(
                follow_redirects=False, event_hooks={"request": [lambda request: sent()] if sent else []}
            ),
        )
        # The client takes these from the environment; the endpoint need not be the one they belong to.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}

    def chat(self, body: dict) -> bytes:
        """The body of the reply to a chat completion request.

        `body` may hold fields beside those of the OpenAI API. Raises Refused, Unanswered, EndpointError.
        """
        return self.post("/chat/completions", body)

    def post(self, path: str, body: dict) -> bytes:
        """The body of the reply to `body` sent to a path under base_url, as `chat`."""
        import httpx2

        return self._sent(lambda: self._client.post(path, body=body, cast_to=httpx2.Response).content)

    def post_once(self, path: str, body: dict) -> bytes:
        """As `post`, never repeated: for what must not happen twice, and may have happened without a reply."""
        import httpx2

        once = {"max_retries": 0}
        return self._sent(lambda: self._client.post(path, body=body, cast_to=httpx2.Response, options=once).content)

    def upload_once(self, path: str, file: Path, name: str, fields: dict[str, str]) -> bytes:
        """The body of the reply to a form with a file, which is streamed from the disk; never repeated."""
        import httpx2

        once = {"max_retries": 0, "headers": {"Content-Type": "multipart/form-data"}}

        def send() -> bytes:
            with open(file, "rb") as opened:
                files = [("file", (name, opened, "application/jsonl"))]
                sent = self._client.post(path, body=fields, files=files, cast_to=httpx2.Response, options=once)
                return sent.content

        return self._sent(send)

    def get(self, path: str, **query: str | int) -> bytes:
        """The body of the reply to a GET of a path under base_url, as `chat`."""
        import httpx2

        return self._sent(lambda: self._client.get(path, cast_to=httpx2.Response, options={"params": query}).content)

    def delete(self, path: str) -> bytes:
        """The body of the reply to a DELETE of a path under base_url, as `chat`."""
        import httpx2

        return self._sent(lambda: self._client.delete(path, cast_to=httpx2.Response).content)

    def read_file(self, file_id: str, take: Callable[[Iterator[bytes]], object]) -> None:
        """Hands the content of a file of the endpoint to `take`, piece by piece as it comes.

        Raises as `chat`; Unanswered also where it breaks off, which `take` then has seen a part of.
        """

        def receive() -> None:
            with self._client.files.with_streaming_response.content(file_id) as response:
                take(response.iter_bytes())

        self._sent(receive)

    def _sent(self, send: Callable[[], _T]) -> _T:
        import httpx2
        import openai

        try:
            return send()
        # A stream that breaks off is none of the client's errors.
        except httpx2.RequestError as error:
            raise self._unanswered(f"broke off its reply: {error}") from None
        except openai.APIStatusError as error:
            status = f"HTTP {error.status_code}"
            # The client words errors of OpenAI's own layout only; FastAPI's `detail` and plain text are in the body.
            said = error.message.removeprefix(f"Error code: {error.status_code}").lstrip(" -") or error.response.text
            if error.status_code in REFUSED:
                raise Refused(error.status_code, self.without_key(said)) from None
            if error.response.has_redirect_location:
                status += f", a redirect to {error.response.headers['location']}, which is not followed"
            # The client's own errors are not chained: a log would print their text as it came.
            if error.status_code in BUSY or error.status_code >= 500:
                raise self._unanswered(
                    f"answers {status}: {said}", error.status_code, error.response.headers.get("retry-after")
                ) from None
            raise EndpointError(self.failure(f"answers {status}: {said}"), error.status_code) from None
        except openai.APITimeoutError as error:
            raise self._unanswered(f"can't be reached: {error.__cause__ or error.message}") from None
        except openai.APIConnectionError as error:
            # No connection is an outage; one that broke may be this request's own fault.
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise EndpointError(self.failure(f"can't be reached: {error.__cause__}")) from None
            raise self._unanswered(f"broke off the connection: {error.__cause__ or error.message}") from None

    def _unanswered(self, what: str, status: int | None = None, retry_after: str | None = None) -> Unanswered:
        # The other form of the header, a date, counts as none given.
        seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
        return Unanswered(self.failure(what), self._brief(what), status, seconds)

    def _brief(self, what: str) -> str:
        return " ".join(self.without_key(what).split())[:MESSAGE_LENGTH]

    def without_key(self, said: str) -> str:
        """What came from outside: an endpoint may send back the headers it was sent.

        A key of a few letters, as a server of one's own is given, is no secret and may be a word of any reply.
        """
        return said.replace(self._key, HIDDEN) if self._key and len(self._key) >= SHORTEST_SECRET else said

    def failure(self, what: str) -> str:
        """The sentence of an error: who asked which endpoint, what it did, what to correct."""
        settings = self.settings
        return (
            f"{self.who}: {settings.base_url} (model {settings.model!r}) {self._brief(what)} "
            f"(after up to {settings.max_retries} retries). Correct base_url, model or api_key_env, "
            "or run it again when the endpoint answers"
        )


def _key(settings: EndpointSettings, who: str) -> str | None:
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"{who}: the environment variable {settings.api_key_env} (api_key_env) is not set; "
            f"put the key of {settings.base_url} there"
        )
    # In a header such a key is an error whose text spells it in another way.
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"{who}: the environment variable {settings.api_key_env} (api_key_env) holds characters "
            "that no key has (a line break, an accent); put the key alone there"
        )
    return key
