"""Images and question texts of published benchmarks, which must not become training prompts (paper, section 4.1).

An image of COCO keeps its id under every name: `COCO_val2014_000000310196.jpg` of a benchmark is
`coco/train2017/000000310196.jpg` of a training set, for COCO's splits of 2014 and of 2017 part the same pictures
differently. So a list of ids finds a benchmark's images wherever they come from. The lists lie beside this module, one
JSON file a benchmark, each with its source.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_LISTS = files("m3po_dagster.method.known_images")
_SUFFIX = ".json"
_COCO_STEM = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})", re.IGNORECASE)

NAMES: tuple[str, ...] = tuple(
    sorted(entry.name.removesuffix(_SUFFIX) for entry in _LISTS.iterdir() if entry.name.endswith(_SUFFIX))
)
"""The benchmarks whose images are known: the stems of the files, sorted."""


@dataclass(frozen=True)
class KnownBenchmark:
    """What a published benchmark asks, and of which images."""

    name: str
    source: str
    """Repository, path and commit that the ids were read from."""
    coco_ids: frozenset[int]
    templates: tuple[re.Pattern[str], ...]
    """Each matches the whole of a question of the benchmark, once its runs of whitespace are one space each and it is
    casefolded; empty where the benchmark's questions are worded as anybody's are."""


def coco_id(name: str) -> int | None:
    """The COCO image id in a file's name, a path or a URL; None where the name is not COCO's.

    COCO's names have 12 digits and nothing else before the extension, or `COCO_<split><year>_` before the digits. Other
    numbers are other datasets': `2354786.jpg` (Visual Genome), `sa_545504.jpg`, `GCC_train_000123456.jpg`, `0001.png`.
    """
    if "://" in name:
        name = re.split(r"[?#]", name, maxsplit=1)[0]
    base = re.split(r"[/\\]", name)[-1]
    stem, dot, _ = base.rpartition(".")
    match = _COCO_STEM.fullmatch(stem if dot else base)
    return int(match[1]) if match else None


def known_benchmarks(names: Sequence[str] | None = None) -> dict[str, KnownBenchmark]:
    """The named benchmarks in the order given, all where None, by the stem of their file.

    Raises ValueError for a name without a list.
    """
    wanted = NAMES if names is None else names
    if unknown := [name for name in wanted if name not in NAMES]:
        raise ValueError(
            f"no list of images for {', '.join(map(repr, unknown))}; the known benchmarks are: {', '.join(NAMES)}"
        )
    return {name: _read(name) for name in wanted}


def benchmarks_of(name: str, lists: Mapping[str, KnownBenchmark]) -> dict[str, int]:
    """The benchmarks of `lists` that have the image of this file name, path or URL, each with its COCO id."""
    number = coco_id(name)
    return {} if number is None else {key: number for key, one in lists.items() if number in one.coco_ids}


@cache
def _read(name: str) -> KnownBenchmark:
    listed = json.loads(_LISTS.joinpath(name + _SUFFIX).read_text(encoding="utf-8"))
    return KnownBenchmark(
        name=listed["benchmark"],
        source=listed["source"],
        coco_ids=frozenset(listed["coco_ids"]),
        templates=tuple(re.compile(template) for template in listed["templates"]),
    )
