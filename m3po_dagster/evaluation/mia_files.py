"""MIA-Bench's published file, instruction_benchmark_all.json, and the images that it names by their addresses.

Nothing is downloaded here. An address stands for the file that `curl -O` makes of it; the field image_name of some
records is not used, as it names another record's image in places.
"""

import hashlib
import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from m3po_dagster.evaluation.question import BenchmarkError, read_text, text_field
from m3po_dagster.image_files import ImageOutsideRoot, locate

MOST_COMPONENTS = 5
_ADDRESS = ("http://", "https://")


@dataclass(frozen=True)
class Record:
    """One record; `number` is its place in the file, from 1. A component is {"text", "weight", "type"}."""

    number: int
    image_path: Path
    image_uri: str
    instruction: str
    type: str
    components: list[dict]


def read_records(path: Path, image_root: Path, skip_missing: bool) -> tuple[list[Record], int]:
    """The records whose image is there, and how many are left out because theirs is not.

    Raises BenchmarkError that names file, record and field; unless `skip_missing` also for missing images, with the
    command that gets the first.
    """
    entries = _entries(path)
    if not entries:
        raise BenchmarkError(f"{path}: no records")
    names = _file_names([text_field(entry, "image", where) for where, entry in entries])
    records, missing = [], []
    for number, (where, entry) in enumerate(entries, start=1):
        given = text_field(entry, "image", where)
        try:
            image = locate(image_root, names[given])
        except ImageOutsideRoot as error:
            raise BenchmarkError(f"{where}: {error}") from None
        instruction, kind = text_field(entry, "instruction", where), text_field(entry, "type", where)
        components = _components(entry, where)
        if image.is_file():
            records.append(Record(number, image, names[given], instruction, kind, components))
        else:
            missing.append((where, given, image))
    if missing and not (skip_missing and records):
        raise BenchmarkError(_how_to_get(*missing[0], len(missing), len(entries)))
    return records, len(missing)


def _entries(path: Path) -> list[tuple[str, dict]]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, list):
        raise BenchmarkError(f"{path}: expected a JSON array of records, as MIA-Bench publishes them")
    entries = [(f"{path}, record {number}", entry) for number, entry in enumerate(content, start=1)]
    if wrong := [where for where, entry in entries if not isinstance(entry, dict)]:
        raise BenchmarkError(f"{wrong[0]}: expected a JSON object")
    return entries


def _file_names(images: list[str]) -> dict[str, str]:
    """What a record gives for its image -> the file below the image root."""
    distinct = dict.fromkeys(images)
    last_parts = {image: urlsplit(image).path.rpartition("/")[2] for image in distinct if image.startswith(_ADDRESS)}
    shared = Counter(last_parts.values())
    names = {image: image for image in distinct}
    for image, name in last_parts.items():
        # Where two addresses end alike, one of the files would take the other's place.
        alone = name and shared[name] == 1
        names[image] = name if alone else f"{hashlib.sha256(image.encode()).hexdigest()[:8]}-{name or 'image'}"
    return names


def _components(entry: dict, where: str) -> list[dict]:
    fields = {"text": "components", "weight": "component_weight", "type": "component_type"}
    lists = {name: entry.get(field) for name, field in fields.items()}
    if wrong := [fields[name] for name, values in lists.items() if not isinstance(values, list)]:
        raise BenchmarkError(f"{where}: {wrong[0]}: expected a list")
    lengths = {fields[name]: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1 or not 1 <= len(lists["text"]) <= MOST_COMPONENTS:
        counted = ", ".join(f"{count} {field}" for field, count in lengths.items())
        raise BenchmarkError(f"{where}: {counted}; expected as many of each, 1 to {MOST_COMPONENTS}")
    components = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    for number, component in enumerate(components, start=1):
        for name in ("text", "type"):
            if not isinstance(component[name], str) or not component[name].strip():
                raise BenchmarkError(f"{where}: {fields[name]}: number {number} is no text")
        weight = component["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise BenchmarkError(f"{where}: component_weight: number {number} is no number above 0")
    return components


def _how_to_get(where: str, given: str, image: Path, missing: int, records: int) -> str:
    get = f"; get it with `{shlex.join(['curl', '-fLo', str(image), given])}`" if given.startswith(_ADDRESS) else ""
    return (
        f"{where}: its image is no file: {image}{get}. The images of {missing} of {records} records are missing: "
        "docs/benchmarks-ift.md says how to get all; `skip_missing_images: true` leaves out those that nobody has any "
        "more"
    )
