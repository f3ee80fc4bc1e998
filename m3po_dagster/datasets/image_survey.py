"""The images that a dataset names: where they lie, which are missing, and how a sample of them looks decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from m3po_dagster.datasets.fetching import Fetcher, is_url
from m3po_dagster.datasets.image_facts import look_at
from m3po_dagster.datasets.images import image_folders
from m3po_dagster.datasets.record import Record
from m3po_dagster.datasets.row import ImageFacts, SourceRow
from m3po_dagster.datasets.settings import AnySource
from m3po_dagster.datasets.tallies import Distinct, Kinds, Sample, hash64
from m3po_dagster.image_files import FORMATS, ImageFolders, ImageOutsideRoot
from m3po_dagster.s3_files.path import survey

PREFIX_FOLDERS = 2
NO_FOLDER = "(no folder)"
EXAMPLES = 3
RECORDS_AN_IMAGE = 64
"""Records held of an image of the sample; more are counted."""


@dataclass
class Sampled:
    """An image of the sample: where it lies, its records in their order, and the number of those beyond the bound."""

    path: Path
    records: list[Record]
    beyond: int = 0

    def add(self, record: Record) -> None:
        """Takes in another record of the image."""
        if len(self.records) < RECORDS_AN_IMAGE:
            self.records.append(record)
        else:
            self.beyond += 1


@dataclass(frozen=True)
class Looked:
    """An image of the sample: its records, and what is known of it decoded; `turned`: EXIF says it lies askew."""

    sampled: Sampled
    facts: ImageFacts
    turned: bool

    def rows(self, source: str) -> list[SourceRow]:
        """The records as the filters take them."""
        return [
            SourceRow(
                source,
                record.record,
                record.source_id,
                record.sha256,
                None,
                record.conversation,
                record.image,
                record.image or self.facts.sha256,
                self.facts,
            )
            for record in self.sampled.records
        ]


class ImageSurvey:
    """Counts images record by record; none is opened before `decode`, and then those of the sample alone.

    Images that the dataset's own files hold are written to the folder `unpacked` while they belong to the sample.
    """

    def __init__(self, source: AnySource, sample: int, max_megapixels: float, unpacked: Path) -> None:
        self._source, self._max_megapixels, self._unpacked = source, max_megapixels, unpacked
        self._folders = ImageFolders(source.image_root, source.folders)
        self._fetcher = Fetcher(source.fetch_from, source.image_root)
        self._sample: Sample[Sampled] = Sample(sample, source.seed)
        self.distinct, self.missing = Distinct(), Distinct()
        self.inside_file = self.records_missing = 0
        self.prefixes: Kinds[None] = Kinds()
        self.missing_prefixes: Kinds[str] = Kinds(EXAMPLES)
        self.hosts: Kinds[str] = Kinds(EXAMPLES)
        self.outside: Kinds[str] = Kinds(EXAMPLES)
        self.looked: list[Looked] = []

    def add(self, record: Record) -> bool:
        """Counts the image of a record; whether a study could use it, as far as one sees without opening it."""
        if record.image_bytes is not None:
            self.inside_file += 1
            key = hash64(record.image_bytes)
            self.distinct.add(key)
            self._keep_bytes(key, record)
            return True
        self.distinct.add(hash64(record.image))
        if is_url(record.image):
            self.hosts.add(_host(record.image), record.image[:200])
            return self._fetcher.allows(record.image)
        return self._locate(record)

    def _locate(self, record: Record) -> bool:
        uri = str(PurePosixPath(record.image))
        prefix = prefix_of(uri)
        self.prefixes.add(prefix)
        try:
            path = self._folders.locate(uri)
            survey(image_folders(self._source).values())
            there = path.is_file()
        except ImageOutsideRoot as error:
            self.outside.add("outside", str(error)[:300])
            return False
        except OSError:  # a name that is too long
            there = False
        if there:
            if (known := self._sample.find(uri)) is not None:
                known.add(record)
            elif (rank := self._sample.wants(uri)) is not None:
                self._sample.put(rank, Sampled(path, [record]))
        else:
            self.records_missing += 1
            self.missing.add(hash64(record.image))
            self.missing_prefixes.add(prefix, uri[:200])
        return there

    def _keep_bytes(self, key: int, record: Record) -> None:
        bare = replace(record, image_bytes=None)
        if (known := self._sample.find(key)) is not None:
            known.add(bare)
        elif (rank := self._sample.wants(key)) is not None:
            path = self._unpacked / f"{rank:016x}"
            path.write_bytes(record.image_bytes)
            if (gone := self._sample.put(rank, Sampled(path, [bare]))) is not None:
                gone.path.unlink(missing_ok=True)

    def decode(self) -> None:
        """Decodes the sample."""
        for sampled in self._sample.items():
            facts, record = look_at(sampled.path, self._max_megapixels), sampled.records[0]
            if facts.problem is not None:
                facts = replace(facts, detail=f"{record.image or f'of record {record.record}'}: {facts.detail}")
            self.looked.append(Looked(sampled, facts, facts.problem is None and _is_turned(sampled.path)))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Upright width and height of the images of the sample that could be decoded."""
        return [(look.facts.width, look.facts.height) for look in self.looked if look.facts.problem is None]

    @property
    def troubles(self) -> Kinds[str]:
        """The images of the sample that are no good, by problem."""
        found: Kinds[str] = Kinds(EXAMPLES)
        for look in self.looked:
            if look.facts.problem is not None:
                found.add(look.facts.problem, look.facts.detail)
        return found

    def prefix_folder(self, prefix: str) -> Path | None:
        """The folder that a prefix stands for; None where there is none, and for a prefix that leads outside."""
        try:
            inside = "x" if prefix == NO_FOLDER else f"{prefix}/x"
            folder = self._folders.locate(inside).parent
            return folder if folder.is_dir() else None
        except (ImageOutsideRoot, OSError):
            return None


def prefix_of(uri: str) -> str:
    """The first two folders of an image's path, which tell the collection that it comes from."""
    path = PurePosixPath(uri)
    folders = path.parts[:-1][: PREFIX_FOLDERS + path.is_absolute()]
    return str(PurePosixPath(*folders)) if folders else NO_FOLDER


def shape_quantiles(sizes: Sequence[tuple[int, int]]) -> dict[str, tuple[float, float, float]]:
    """Smallest, middle and largest width, height, shorter side (pixels) and ratio of the longer to the shorter side."""
    columns = {
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "shorter side": [min(size) for size in sizes],
        "aspect": [round(max(size) / min(size), 2) for size in sizes],
    }
    return {
        name: (values[0], values[len(values) // 2], values[-1])
        for name, values in ((name, sorted(column)) for name, column in columns.items())
        if values
    }


def _host(url: str) -> str:
    """The host as fetch_from names it, its port included; never a name or password before it."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower() or url.partition(":")[0].lower() + ":"
    except ValueError:  # brackets that hold no address
        return "(no host)"


def _is_turned(path: Path) -> bool:
    from PIL import ExifTags, Image

    with Image.open(path, formats=FORMATS) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
