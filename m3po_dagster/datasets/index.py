"""A dataset's records with what is known of their images, in the order of its sources (section 4.1).

Memory holds a batch of records, whatever the size of the files. Images are decoded here and nowhere else: what was
found is remembered, so a dataset that grew is read again but its old images are not.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from m3po_dagster.datasets.fetching import Fetcher, NotFetched, is_url
from m3po_dagster.datasets.image_looks import ImageLooks, Memory
from m3po_dagster.datasets.images import DatasetImages, image_folders
from m3po_dagster.datasets.record import DatasetError, Malformed, Record
from m3po_dagster.datasets.row import (
    IMAGE_MISSING,
    IMAGE_NOT_FETCHED,
    IMAGE_OUTSIDE,
    IMAGE_URL,
    UNKNOWN,
    ImageFacts,
    SourceRow,
)
from m3po_dagster.datasets.settings import AnySource, DatasetSettings
from m3po_dagster.datasets.subset import records_of
from m3po_dagster.datasets.unpacking import unpack
from m3po_dagster.image_files import ImageOutsideRoot
from m3po_dagster.s3_files.ahead import side_by_side
from m3po_dagster.s3_files.path import S3Path

BATCH, BYTES_HELD = 256, 32 << 20
"""Records whose images are looked at together, and the bytes at which there are enough of them."""


@dataclass(frozen=True)
class _Placed:
    """Where a record's image lies, or why nowhere."""

    uri: str | None = None
    path: Path | None = None
    trouble: ImageFacts = UNKNOWN
    for_now: str = ""


class NotFetchedYet(DatasetError):
    """Images whose servers did not answer; what was fetched is kept, so another run asks for these alone."""


class DatasetIndex:
    """Reads a dataset's rows; one is used by one thread. `batch` records have their images looked at together."""

    def __init__(self, dataset: DatasetSettings, memory: Memory | None = None, batch: int = BATCH) -> None:
        self._dataset, self._batch_records = dataset, batch
        self._images = DatasetImages(dataset)
        self._looks = ImageLooks(memory, dataset.max_megapixels)
        self._for_now: list[str] = []

    def __enter__(self) -> "DatasetIndex":
        self._looks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._looks.__exit__()

    def rows(self, progress: Callable[[int, int], None] | None = None) -> Iterator[SourceRow]:
        """Every record of every source, malformed ones included; of a source with `take`, those that it takes.

        An image outside its folders is never opened. `progress` is told the records done and 0, their number being
        unknown. Raises DatasetError for a broken file, naming it and the position; at the end NotFetchedYet where a
        server did not answer; OSError where an image can't be written; and StoreError for a bucket that can't be asked.
        """
        done = 0
        for name, source in self._dataset.sources.items():
            with Fetcher(source.fetch_from, source.image_root) as fetcher:
                for batch in self._batches(source):
                    yield from self._looked_up(name, source, fetcher, batch)
                    done += len(batch)
                    if progress:
                        progress(done, 0)
        if self._for_now:
            raise NotFetchedYet(
                f"{len(self._for_now)} images could not be fetched for now, the first: {self._for_now[0]}. What was "
                "fetched is kept: run it again once the server answers, or take its host out of fetch_from"
            )

    def _batches(self, source: AnySource) -> Iterator[list[Record | Malformed]]:
        """Records by the number, or fewer that hold many bytes: an image may be as large as a batch of texts."""
        batch, held = [], 0
        for item in records_of(source, int(self._dataset.max_record_megabytes * 1e6)):
            batch.append(item)
            if isinstance(item, Record):
                held += len(item.image_bytes or b"") + sum(len(text) for _, text in item.conversation)
            if len(batch) == self._batch_records or held >= BYTES_HELD:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _looked_up(
        self, name: str, source: AnySource, fetcher: Fetcher, batch: Sequence[Record | Malformed]
    ) -> Iterator[SourceRow]:
        # Waiting for a server is done side by side, each address once; a look at a path is too short for that.
        records = [item for item in batch if isinstance(item, Record) and item.image_bytes is None]
        urls = list(dict.fromkeys(item.image for item in records if is_url(item.image or "")))
        answers = self._looks.threads.map(lambda url: _fetched(url, source, fetcher), urls)
        fetched = dict(zip(urls, answers, strict=True))
        self._for_now += [place.for_now for place in fetched.values() if place.for_now]
        remote = any(isinstance(folder, S3Path) for folder in image_folders(source).values())
        placed = side_by_side(lambda item: self._place(name, source, fetched, item), batch, remote)
        facts = self._looks.at(place.path for place in placed if place.path is not None)
        for item, place in zip(batch, placed, strict=True):
            found = place.trouble if place.path is None else facts[place.path]
            if place.path is not None and found.problem is not None:
                found = replace(found, detail=f"{item.image or place.uri}: {found.detail}")
            refused, turns, image = None, None, None
            if isinstance(item, Malformed):
                refused = item.detail
            else:
                turns, image = item.conversation, item.image
            yield SourceRow(name, item.record, item.source_id, item.sha256, refused, turns, image, place.uri, found)

    def _place(
        self, name: str, source: AnySource, fetched: Mapping[str, "_Placed"], item: Record | Malformed
    ) -> _Placed:
        if isinstance(item, Malformed):
            return _Placed()
        if item.image_bytes is not None:
            uri = unpack(item.image_bytes, source.image_root)
            return _Placed(uri, source.image_root / uri)
        if item.image is None:
            return _Placed()
        if item.image in fetched:
            return fetched[item.image]
        uri = str(PurePosixPath(item.image))
        try:
            path = self._images.locate(name, uri)
            if path.is_file():
                return _Placed(uri, path)
            return _Placed(uri, trouble=ImageFacts(problem=IMAGE_MISSING, detail=f"no file {uri}"))
        except ImageOutsideRoot as error:
            return _Placed(uri, trouble=ImageFacts(problem=IMAGE_OUTSIDE, detail=str(error)))
        except OSError as error:  # a name that is too long
            detail = f"{uri[:200]} can't be read: {error.strerror}"
            return _Placed(uri, trouble=ImageFacts(problem=IMAGE_MISSING, detail=detail))


def _fetched(url: str, source: AnySource, fetcher: Fetcher) -> _Placed:
    if not fetcher.allows(url):
        detail = f"{url[:200]}: its host is not named in fetch_from"
        return _Placed(url, trouble=ImageFacts(problem=IMAGE_URL, detail=detail))
    try:
        uri = fetcher.fetch(url)
    except NotFetched as error:
        trouble = ImageFacts(problem=IMAGE_NOT_FETCHED, detail=str(error))
        return _Placed(url, trouble=trouble, for_now=str(error) if error.for_now else "")
    return _Placed(uri, source.image_root / uri)


def shard_names(shards: int) -> list[str]:
    """Names of the shards: s0, s1, ..."""
    return [f"s{number}" for number in range(shards)]


def shard_of(row: SourceRow, shards: int) -> str:
    """The shard of a row: a hash of what it belongs to, modulo their number.

    That is the image's content, or its path where it can't be read, or the record's id where there is none. So one
    image never sits in two shards, a record added to the file moves no other, and shards are alike in size.
    """
    if row.image.sha256:
        key = f"image {row.image.sha256}"
    else:
        key = f"uri {row.image_uri}" if row.image_uri else f"id {row.source_id}"
    return f"s{int.from_bytes(hashlib.sha256(key.encode('utf-8')).digest()[:8], 'big') % shards}"
