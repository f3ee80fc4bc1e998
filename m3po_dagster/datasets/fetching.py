"""Images that records name by URL: refused, unless the study allows their host; then fetched once and kept."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from m3po_dagster.datasets.images import OWN
from m3po_dagster.datasets.unpacking import write_once

if TYPE_CHECKING:
    import requests

MAX_BYTES = 64 << 20
_REDIRECTS = 5
_SECONDS, _SECONDS_IN_ALL = 30, 120
_TRIES = 3
_BUSY = (429, 500, 502, 503, 504)
_CHUNK = 1 << 16


class NotFetched(ValueError):
    """An image that can't be fetched; the message says why. What failed `for_now` may be there another time."""

    def __init__(self, message: str, for_now: bool = False) -> None:
        super().__init__(message)
        self.for_now = for_now


def is_url(image: str) -> bool:
    """Whether a record names its image by URL, of whatever scheme."""
    return "://" in image or image[:5].lower() == "data:"


def fetched_path(url: str) -> str:
    """Where the image of a URL is kept, relative to the image root."""
    digest = hashlib.sha256(url.encode("utf-8")).hexdigest()
    return f"{OWN}/fetched/{digest[:2]}/{digest}"


class Fetcher:
    """Fetches from named hosts alone, redirects included; several threads may share one."""

    def __init__(self, hosts: tuple[str, ...], root: Path) -> None:
        self._hosts, self._root = {host.lower() for host in hosts}, root
        self._session = _session() if hosts else None

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()

    def allows(self, url: str) -> bool:
        """Whether the URL is http or https and of a named host, which holds the port where it isn't the usual one."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        # With a user's name or a password before the host, the whole is no allowed host.
        return parts.scheme in ("http", "https") and parts.netloc.lower() in self._hosts

    def fetch(self, url: str) -> str:
        """The image's path relative to the image root, fetched unless it is there.

        Raises NotFetched for a host that isn't allowed, an error of the server, more than 64 MiB, or no whole answer
        within two minutes.
        """
        relative = fetched_path(url)
        if not (self._root / relative).is_file():
            write_once(self._root / relative, self._content(url))
        return relative

    def _content(self, url: str) -> bytes:
        import requests
        from requests.exceptions import ChunkedEncodingError

        deadline = time.monotonic() + _SECONDS_IN_ALL
        for _ in range(_REDIRECTS + 1):
            if not self.allows(url):
                raise NotFetched(f"{url[:200]} is not of an allowed host; name it in fetch_from")
            try:
                with self._session.get(url, stream=True, timeout=_SECONDS, allow_redirects=False) as answer:
                    if answer.is_redirect:
                        url = urljoin(url, answer.headers["location"])
                        continue
                    if answer.status_code in _BUSY:
                        raise NotFetched(f"{url[:200]}: the server answers {answer.status_code}", for_now=True)
                    answer.raise_for_status()
                    content = bytearray()
                    for chunk in answer.iter_content(_CHUNK):
                        content += chunk
                        if len(content) > MAX_BYTES:
                            raise NotFetched(f"{url[:200]} has more than {MAX_BYTES} bytes")
                        if time.monotonic() > deadline:
                            raise NotFetched(f"{url[:200]} takes more than {_SECONDS_IN_ALL} seconds", for_now=True)
                    return bytes(content)
            except NotFetched:
                raise
            except (requests.RequestException, ValueError) as error:
                # Whoever did not answer may do so later; what answered with an error has no such image.
                later = isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError)
                raise NotFetched(f"{url[:200]}: {type(error).__name__}: {str(error)[:200]}", for_now=later) from None
        raise NotFetched(f"{url[:200]} redirects more than {_REDIRECTS} times")


def _session() -> "requests.Session":
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    session = requests.Session()
    # A server's own wish how long to wait is not followed: it could be a day.
    retry = Retry(
        _TRIES - 1,
        status_forcelist=_BUSY,
        backoff_factor=0.5,
        redirect=False,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # Else a password of the home folder's .netrc would go to whatever host a study allows.
    session.auth = lambda request: request
    return session
