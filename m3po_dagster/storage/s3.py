"""A bucket of an S3 service as this project talks to it: conditional writes, retries, errors that say what to do.

Credentials, region and endpoint are boto3's own affair: AWS_ACCESS_KEY_ID and its like, AWS_PROFILE, the role of the
instance or pod, AWS_ENDPOINT_URL_S3 for a service that is not Amazon's. A URL holds none of them.
"""

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.s3_errors import MISSING, REFUSED, advice, code, no_bucket, passing

SCHEME = "s3"
Answer = TypeVar("Answer")
_LOG = logging.getLogger(__name__)
_ATTEMPTS = 4
_PATIENCE_SECONDS = 300
"""How long a request is repeated while the service can't be reached: long enough for one that is started anew."""
_LONGEST_PAUSE = 10
_A_REQUEST = 1000
_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_IN_ONE_PIECE, _CHUNK = 16 << 20, 1 << 18


@dataclass(frozen=True)
class Seen:
    """An object as the service describes it. `now` is the service's own clock when it answered."""

    size: int
    etag: str
    modified: datetime
    now: datetime

    @property
    def age(self) -> float:
        """Seconds since the object was written, by the service's clock alone: this machine's may be wrong."""
        return (self.now - self.modified).total_seconds()


@dataclass(frozen=True)
class Listed:
    """An object of a listing; `key` is relative to the bucket's prefix."""

    key: str
    size: int
    modified: datetime
    etag: str


def is_s3(root: str | Path) -> bool:
    """Whether a root names a bucket and not a folder."""
    return str(root).startswith(f"{SCHEME}://")


class Bucket:
    """The objects below `s3://bucket/prefix`; every key is relative to the prefix. Safe to use from many threads."""

    def __init__(self, url: str, patience: float = _PATIENCE_SECONDS) -> None:
        """`patience`: seconds for which a request is repeated while the service can't be reached.

        Nothing is asked of the service yet. Raises StoreError for a URL that names no bucket or holds secrets."""
        parts = urlsplit(url)
        if parts.scheme != SCHEME or not parts.hostname or parts.query or parts.fragment:
            raise StoreError(f"{url!r} is no URL of a bucket: write s3://bucket or s3://bucket/prefix")
        if "@" in parts.netloc:
            raise StoreError(
                f"the URL of bucket {parts.hostname} holds credentials, which would be stored with every result: "
                "give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
            )
        self.name, self.prefix = parts.netloc, parts.path.removeprefix("/").removesuffix("/")
        if any(part in ("", ".", "..") for part in self.prefix.split("/") if self.prefix):
            raise StoreError(f"{url!r}: the prefix has an empty part, '.' or '..'")
        self.patience = patience
        self._lock = threading.Lock()
        self._pid = 0
        self._client: Any = None
        self._there = False  # not known yet

    @property
    def url(self) -> str:
        """s3://bucket/prefix, without a slash at its end."""
        return f"{SCHEME}://{self.name}" + (f"/{self.prefix}" if self.prefix else "")

    def where(self, key: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{key}" if key else self.url

    @property
    def client(self) -> Any:
        """boto3's client. A forked child makes its own: connections are their process's.

        Raises StoreError where the environment names an endpoint, a region or a profile that can't be used.
        """
        with self._lock:
            if self._pid != os.getpid():
                import boto3
                from botocore.config import Config
                from botocore.exceptions import BotoCoreError, InvalidRegionError, ProfileNotFound

                settings = Config(
                    retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_READ_SECONDS,
                    max_pool_connections=32,
                )
                try:
                    self._client = boto3.session.Session().client("s3", config=settings)
                except ProfileNotFound as error:
                    raise StoreError(
                        f"can't ask for {self.url}: {error}; correct AWS_PROFILE, or add that profile to ~/.aws/config"
                    ) from error
                except InvalidRegionError as error:
                    raise StoreError(f"can't ask for {self.url}: {error}; correct AWS_DEFAULT_REGION") from error
                except BotoCoreError:
                    raise  # told as what goes wrong later, some of them are ValueErrors too
                except ValueError as error:  # botocore's own for an endpoint that is no URL
                    raise StoreError(
                        f"can't ask for {self.url}: {error}; write http://... or https://... in AWS_ENDPOINT_URL_S3"
                    ) from error
                self._pid = os.getpid()
            return self._client

    def put(self, key: str, body: bytes) -> str:
        """Write an object, whatever was there. Returns its ETag."""
        return self._ask("write", key, lambda: self.client.put_object(**self._at(key), Body=body)["ETag"])

    def put_if_absent(self, key: str, body: bytes) -> str | None:
        """Write an object only where there is none; of all who try, one gets its ETag, the others None.

        A retry after a lost answer may find what this very call wrote: then it counts as written.
        """
        return self._put_on_condition(key, body, IfNoneMatch="*")

    def put_if_match(self, key: str, body: bytes, etag: str) -> str | None:
        """Write over an object only while it is the one of `etag`; None where it isn't any more."""
        return self._put_on_condition(key, body, IfMatch=etag)

    def _put_on_condition(self, key: str, body: bytes, **condition: str) -> str | None:
        answer = self._ask(
            "write", key, lambda: self.client.put_object(**self._at(key), Body=body, **condition), REFUSED | MISSING
        )
        if answer is not None:
            return answer["ETag"]
        found = self.get(key)
        return found[1].etag if found is not None and found[0] == body else None

    def get(self, key: str) -> tuple[bytes, Seen] | None:
        """An object's bytes and description; None where there is none."""

        def read() -> tuple[bytes, Seen]:
            answer = self.client.get_object(**self._at(key))
            return answer["Body"].read(), _seen(answer)

        return self._ask("read", key, read, MISSING)

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """`length` bytes (at least 1) of an object from `start`; None where it isn't there or is shorter."""
        wanted = f"bytes={start}-{start + length - 1}"

        def read() -> bytes:
            return self.client.get_object(**self._at(key), Range=wanted)["Body"].read()

        found = self._ask("read", key, read, MISSING | {"InvalidRange", "416"})
        return found if found is not None and len(found) == length else None

    def look(self, key: str) -> Seen | None:
        """An object's description; None where there is none."""
        seen = self._ask("look at", key, lambda: _seen(self.client.head_object(**self._at(key))), MISSING)
        if seen is None:
            self._see_bucket(key)
        return seen

    def _see_bucket(self, key: str) -> None:
        """Raises StoreError where the bucket is not there: an answer without a body does not say what is missing."""
        if self._there or self._ask("look at", "", lambda: self.client.head_bucket(Bucket=self.name), MISSING):
            return
        raise StoreError(f"can't look at {self.where(key)}: {no_bucket(self.name)}")

    def upload(self, source: Path, key: str) -> None:
        """Write a file, in several parts where it is large; the object is there whole or not at all."""
        self._ask("write", key, lambda: self.client.upload_file(str(source), self.name, self._full(key)))

    def copy(self, key: str, to: str) -> bool:
        """Copy an object inside the bucket; False where there is none."""
        if self.look(key) is None:
            return False
        self._ask("copy", key, lambda: self.client.copy(self._at(key), self.name, self._full(to)))
        return True

    def download(self, key: str, target: Path) -> None:
        """Read an object into a file. Raises StoreError where there is none."""
        self._ask("read", key, lambda: self.client.download_file(self.name, self._full(key), str(target)))

    def fetch(self, key: str, target: Path) -> Seen | None:
        """Read an object into a file, whole and as one version; its description, None where there is none.

        One request where the object is small; a large one is read in several parts.
        """

        def read() -> Seen:
            answer = self.client.get_object(**self._at(key))
            seen, body, before = _seen(answer), answer["Body"], None
            if seen.size <= _IN_ONE_PIECE:
                with body, target.open("wb") as file:
                    file.writelines(body.iter_chunks(_CHUNK))
                return seen
            body.close()
            while before is None or before.etag != seen.etag:  # else parts of two versions, or of one unknown
                self.client.download_file(self.name, self._full(key), str(target))
                before, seen = seen, _seen(self.client.head_object(**self._at(key)))
            return seen

        return self._ask("read", key, read, MISSING)

    def list(self, prefix: str = "", after: str = "") -> Iterator[Listed]:
        """Every object whose key begins with `prefix`, in the order of their keys, a request for each 1000.

        With `after` only those whose keys come behind it.
        """
        cut = len(self._full(""))
        for page in self._pages(prefix, **({"StartAfter": self._full(after)} if after else {})):
            for found in page.get("Contents", ()):
                yield _listed(found, cut)

    def level(self, prefix: str = "") -> Iterator[Listed | str]:
        """What lies right below `prefix` (empty, or ending in '/'): its objects, and the names of folders as text."""
        cut, start = len(self._full("")), len(self._full(prefix))
        for page in self._pages(prefix, Delimiter="/"):
            yield from (found["Prefix"][start:-1] for found in page.get("CommonPrefixes", ()))
            yield from (_listed(found, cut) for found in page.get("Contents", ()))

    def holds(self, prefix: str) -> bool:
        """Whether there is any object whose key begins with `prefix`."""
        return bool(next(self._pages(prefix, MaxKeys=1)).get("KeyCount"))

    def folders(self, prefix: str = "") -> Iterator[str]:
        """Names between `prefix` (empty, or ending in '/') and the next '/', sorted."""
        cut = len(self._full(prefix))
        for page in self._pages(prefix, Delimiter="/"):
            for found in page.get("CommonPrefixes", ()):
                yield found["Prefix"][cut:-1]

    def _pages(self, prefix: str, **more: str | int) -> Iterator[dict]:
        wanted = {"Bucket": self.name, "Prefix": self._full(prefix), **more}
        while True:
            page = self._ask("list", prefix.removesuffix("/"), lambda: self.client.list_objects_v2(**wanted))
            yield page
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        self._ask("remove", key, lambda: self.client.delete_object(**self._at(key)))

    def remove_all(self, keys: Iterable[str]) -> None:
        """Remove objects, a request for each 1000."""
        waiting = iter(keys)
        while some := list(islice(waiting, _A_REQUEST)):
            self._remove_some(some)

    def _remove_some(self, keys: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": self._full(key)} for key in keys], "Quiet": True}
        answer = self._ask("remove", keys[0], lambda: self.client.delete_objects(Bucket=self.name, Delete=wanted))
        for error in answer.get("Errors", ()):
            raise StoreError(
                f"can't remove s3://{self.name}/{error.get('Key')}: {error.get('Message') or error.get('Code')}; "
                "check that the credentials may delete there"
            )

    def remove_if_match(self, key: str, etag: str) -> bool:
        """Remove an object only while it is the one of `etag`; whether it was."""
        answer = self._ask(
            "remove", key, lambda: self.client.delete_object(**self._at(key), IfMatch=etag), REFUSED | MISSING
        )
        return answer is not None

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": self._full(key)}

    def _ask(self, action: str, key: str, call: Callable[[], Answer], none: Collection[str] = ()) -> Answer | None:
        """The answer, or None for an error whose code is in `none`; repeated while the service can't be reached.

        Raises StoreError that names the object and says what to do.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        patient = Retrying(
            retry=retry_if_exception(passing),
            stop=stop_after_delay(self.patience),
            wait=wait_random_exponential(0.2, _LONGEST_PAUSE),
            before_sleep=lambda state: _LOG.warning("%s; asking again", state.outcome.exception()),
            reraise=True,
        )
        try:
            answer = patient(call)
            self._there = True
            return answer
        except (ClientError, BotoCoreError, Boto3Error) as error:
            if code(error) in none:
                return None
            raise StoreError(f"can't {action} {self.where(key)}: {error}; {advice(error, self.name)}") from error


def _listed(found: dict, cut: int) -> Listed:
    return Listed(found["Key"][cut:], found["Size"], found["LastModified"], found["ETag"])


def _seen(answer: dict) -> Seen:
    sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    modified = answer["LastModified"]
    now = parsedate_to_datetime(sent) if sent else modified
    return Seen(answer["ContentLength"], answer["ETag"], modified, now)
