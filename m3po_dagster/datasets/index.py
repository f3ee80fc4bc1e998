"""A dataset's records with what is known of their images, in the order of its sources (section 4.1).

Memory holds a batch of records, whatever the size of the files. Images are decoded here and nowhere else: what was
found is remembered, so a dataset that grew is read again but its old images are not.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from m3po_dagster.datasets.fetching import Fetcher, NotFetched, is_url
from m3po_dagster.datasets.image_looks import ImageLooks, Memory
from m3po_dagster.datasets.images import DatasetImages
from m3po_dagster.datasets.record import Malformed, Record
from m3po_dagster.datasets.row import (
    IMAGE_MISSING,
    IMAGE_NOT_FETCHED,
    IMAGE_OUTSIDE,
    IMAGE_URL,
    UNKNOWN,
    ImageFacts,
    SourceRow,
)
from m3po_dagster.datasets.settings import PACKED, AnySource, DatasetSettings
from m3po_dagster.datasets.subset import records_of
from m3po_dagster.datasets.unpacking import unpack
from m3po_dagster.image_files import ImageOutsideRoot

BATCH = 256
"""Records whose images are looked at together."""


@dataclass(frozen=True)
class _Placed:
    """Where a record's image lies, or why nowhere."""

    uri: str | None = None
    path: Path | None = None
    trouble: ImageFacts = UNKNOWN


class DatasetIndex:
    """Reads a dataset's rows; one is used by one thread."""

    def __init__(self, dataset: DatasetSettings, memory: Memory | None = None) -> None:
        self._dataset = dataset
        self._images = DatasetImages(dataset)
        self._looks = ImageLooks(memory, dataset.max_megapixels)

    def __enter__(self) -> "DatasetIndex":
        self._looks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._looks.__exit__()

    def rows(self, progress: Callable[[int, int], None] | None = None) -> Iterator[SourceRow]:
        """Every record of every source, malformed ones included; of a source with `take`, those that it takes.

        An image outside its folders is never opened. `progress` is told the records done and 0, their number being
        unknown. Raises DatasetError for a broken file, naming it and the position, and OSError where an image can't be
        unpacked.
        """
        done = 0
        for name, source in self._dataset.sources.items():
            fetcher = Fetcher(source.fetch_from, source.image_root)
            records = records_of(source, int(self._dataset.max_record_megabytes * 1e6))
            while batch := list(islice(records, BATCH)):
                yield from self._batch(name, source, fetcher, batch)
                done += len(batch)
                if progress:
                    progress(done, 0)

    def _batch(
        self, name: str, source: AnySource, fetcher: Fetcher, batch: Sequence[Record | Malformed]
    ) -> Iterator[SourceRow]:
        # Waiting for a server, or writing what was packed, is done side by side; a look at a path is too short for that.
        waits = source.fetch_from or source.format in PACKED
        each = self._looks.threads.map if waits else map
        placed = list(each(lambda item: self._place(name, source, fetcher, item), batch))
        facts = self._looks.at({place.path: place.uri for place in placed if place.path is not None})
        for item, place in zip(batch, placed, strict=True):
            found = place.trouble if place.path is None else facts[place.path]
            refused = item.detail if isinstance(item, Malformed) else None
            turns = None if isinstance(item, Malformed) else item.conversation
            yield SourceRow(name, item.record, item.source_id, item.sha256, refused, turns, place.uri, found)

    def _place(self, name: str, source: AnySource, fetcher: Fetcher, item: Record | Malformed) -> _Placed:
        if isinstance(item, Malformed):
            return _Placed()
        if item.image_bytes is not None:
            uri = unpack(item.image_bytes, source.image_root)
            return _Placed(uri, source.image_root / uri)
        if item.image is None:
            return _Placed()
        if is_url(item.image):
            return _fetched(item.image, source, fetcher)
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
        return _Placed(url, trouble=ImageFacts(problem=IMAGE_NOT_FETCHED, detail=str(error)))
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
