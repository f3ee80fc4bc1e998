"""Which prompts show or ask what a benchmark does (section 4.1)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from m3po_dagster.method.filtering.hamming import first_within
from m3po_dagster.method.filtering.images_seen import ImagesSeen
from m3po_dagster.method.filtering.near_duplicate import is_telling
from m3po_dagster.method.filtering.result import Dropped
from m3po_dagster.method.filtering.row import SourceRow, is_usable
from m3po_dagster.method.filtering.settings import ContaminationFilter
from m3po_dagster.method.known_images.known import KnownBenchmark, benchmarks_of, known_benchmarks

COCO_ID = "benchmark image (COCO id)"
SAME_FILE = "benchmark image (same file)"
LOOKS_SAME = "benchmark image (looks the same)"
QUESTION = "benchmark question"

TEMPLATE_CHARACTERS = 500
"""No benchmark's question is longer: longer texts are not matched, so that no pattern can take long."""


@dataclass(frozen=True)
class BenchmarkImages:
    """Images of the study's own benchmarks, one row each, columns of one length.

    `benchmark` names the benchmark, `image_uri` its image, `sha256` (None where the file can't be read) the file's
    bytes, `phash` (None where it can't be decoded) its perceptual hash.
    """

    benchmark: Sequence[str]
    image_uri: Sequence[str]
    sha256: Sequence[str | None]
    phash: Sequence[int | None]

    @cached_property
    def by_sha256(self) -> dict[str, int]:
        """The first row with each hash of bytes."""
        rows = range(len(self.sha256) - 1, -1, -1)
        return {self.sha256[row]: row for row in rows if self.sha256[row] is not None}

    def name(self, row: int) -> str:
        """The image as a person finds it."""
        return f"{self.image_uri[row]} of {self.benchmark[row]}"


@dataclass(frozen=True)
class Leak:
    """A kept prompt that shows a benchmark's image."""

    prompt_id: str
    reason: str
    detail: str


class Contamination:
    """The prompts of some rows that show or ask what a benchmark does."""

    def __init__(
        self,
        rows: Iterable[SourceRow],
        settings: ContaminationFilter,
        benchmarks: BenchmarkImages | None,
        seen: ImagesSeen,
    ):
        """Of these rows. An image that a record names by its COCO id is known under other names, too.

        In all rows that have the same bytes, and where `seen`, the dataset's images, hold one by its id that looks the
        same: Visual Genome has many of COCO's images under numbers of its own.
        """
        known = known_benchmarks(settings.known)
        usable = {(row.image_name, row.image.sha256): row.image.phash for row in rows if is_usable(row.image)}
        by_id: dict[str, Dropped] = {}
        for name, sha256 in usable:
            if name is not None and (why := _known_id(name, known)) is not None:
                by_id.setdefault(sha256, why)
        hashes = {sha256: phash for (_, sha256), phash in usable.items() if sha256 not in by_id}
        alike = _own(hashes, _by_id(seen, known), settings.distance)
        own = _own(hashes, benchmarks, settings.distance) if settings.images and benchmarks is not None else {}
        self._images = {**alike, **own, **by_id}
        self._templates = (
            [(one.name, template) for one in known.values() for template in one.templates] if settings.templates else []
        )

    def __call__(self, sha256: str, question: str) -> Dropped | None:
        """Why the prompt with this image and question is dropped."""
        return self._images.get(sha256) or self._asked(question)

    def _asked(self, question: str) -> Dropped | None:
        if len(question) > TEMPLATE_CHARACTERS:
            return None
        text = " ".join(question.split()).casefold()
        name = next((name for name, template in self._templates if template.fullmatch(text)), None)
        return None if name is None else Dropped(QUESTION, f"in the form of a question of {name}")


def contaminated(kept: pa.Table, known: Sequence[str], benchmarks: BenchmarkImages | None) -> list[Leak]:
    """The rows of a filtered_instructions table that show an image of a benchmark, by COCO id or by bytes.

    Counts anew on the result, whatever was filtered and how. `known` names lists of published benchmarks. Raises
    ValueError for a name without a list.
    """
    lists = known_benchmarks(known)
    leaks = []
    for row in kept.select(["prompt_id", "image_name", "image_uri", "image_sha256"]).to_pylist():
        name = row["image_name"] or row["image_uri"]
        if of := benchmarks_of(name, lists):
            number, named = next(iter(of.values())), ", ".join(lists[key].name for key in of)
            leaks.append(Leak(row["prompt_id"], COCO_ID, f"{name} is image {number} of {named}"))
        elif benchmarks is not None and row["image_sha256"] in benchmarks.by_sha256:
            same = benchmarks.name(benchmarks.by_sha256[row["image_sha256"]])
            leaks.append(Leak(row["prompt_id"], SAME_FILE, f"{name} has the bytes of {same}"))
    return leaks


def _known_id(name: str, known: Mapping[str, KnownBenchmark]) -> Dropped | None:
    first = next(iter(benchmarks_of(name, known).items()), None)
    return None if first is None else Dropped(COCO_ID, f"{name} is image {first[1]} of {known[first[0]].name}")


def _by_id(seen: ImagesSeen, known: Mapping[str, KnownBenchmark]) -> BenchmarkImages:
    """The dataset's own images that are known benchmarks' by their names."""
    named = ((row, name) for row, name in enumerate(seen.name.to_pylist()) if name is not None)
    found = [(row, name, known[next(iter(of))].name) for row, name in named if (of := benchmarks_of(name, known))]
    return BenchmarkImages(
        [benchmark for _, _, benchmark in found],
        [name for _, name, _ in found],
        [seen.sha256[row].as_py() for row, _, _ in found],
        [int(seen.phash[row]) for row, _, _ in found],
    )


def _own(hashes: dict[str, int], benchmarks: BenchmarkImages, distance: int) -> dict[str, Dropped]:
    """Why the images with these bytes, and these perceptual hashes, are those of one of the study's own benchmarks."""
    comparable = [row for row, phash in enumerate(benchmarks.phash) if phash is not None]
    members = np.array([benchmarks.phash[row] for row in comparable], np.uint64)
    telling = np.flatnonzero(is_telling(members))
    queries = np.array(list(hashes.values()), np.uint64)
    found = np.where(is_telling(queries), first_within(queries, members[telling], distance), -1)
    dropped = {}
    for sha256, phash, at in zip(hashes, queries, found.tolist(), strict=True):
        if sha256 in benchmarks.by_sha256:
            same = benchmarks.name(benchmarks.by_sha256[sha256])
            dropped[sha256] = Dropped(SAME_FILE, f"the same bytes as {same}")
        elif at >= 0:
            like = telling[at]
            differ = int(np.bitwise_count(phash ^ members[like]))
            other = benchmarks.name(comparable[like])
            dropped[sha256] = Dropped(LOOKS_SAME, f"looks like {other}: {differ} of 64 bits differ")
    return dropped
