"""Whether a text file is a JSON array of records or JSON lines, and of what: told by its first records."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from m3po_dagster.datasets.benchmark_layouts import DOCUMENTS, RECORDS, BenchmarkLayout, benchmark_of
from m3po_dagster.datasets.json_array import read_array
from m3po_dagster.datasets.json_text import loads

LONGEST_RECORD = 16_000_000
FIRST = 50
"""Records that are looked at: text-only ones, which name no image, often stand together."""
_TOP_KEY = re.compile(r'"([^"\\]{1,80})"\s*:')
_ASKS = ("conversations", "messages", "question")
_SHOWN_KEYS = 8

Found = tuple[str, str] | BenchmarkLayout | str
"""Format and the first image named, '' for none; or the benchmark that it is; or, as words, what it is instead."""


@dataclass(frozen=True)
class _Seen:
    """The first records in short: how many are objects, their keys together, and the first image that one names."""

    objects: int
    keys: frozenset[str]
    image: str

    @classmethod
    def of(cls, records: Iterable[object]) -> "_Seen":
        """Looks at one record at a time."""
        objects, keys, image = 0, set(), ""
        for record in records:
            if isinstance(record, dict):
                objects += 1
                keys.update(record)
                named = record.get("image")
                image = image or (named if isinstance(named, str) else "")
        return cls(objects, frozenset(keys), image)


def of_text(path: Path, head: bytes) -> Found:
    """What a text file is that starts with these bytes. Raises DatasetError where its first records can't be read."""
    text = head.decode("utf-8-sig", errors="replace")
    start = text.lstrip()
    if start.startswith("["):
        return _of_array(path)
    if start.startswith("{"):
        return _of_lines(path, text)
    if b"\0" in head:
        return "binary data of no kind that is known"
    return f"text that starts with {start[:20]!r}, which is no JSON"


def first_image(path: Path, lines: bool) -> str:
    """The first image that the first records of JSON lines, or of an array, name; '' for none. Raises as `of_text`."""
    return _Seen.of(_lines(path) if lines else _elements(path)).image


def _of_array(path: Path) -> Found:
    seen = _Seen.of(_elements(path))
    if not seen.objects:
        return "a JSON array that does not begin with objects"
    if "conversations" in seen.keys:
        return "llava_instruct", seen.image
    if benchmark := benchmark_of(seen.keys, RECORDS):
        return benchmark
    if any(key in seen.keys for key in _ASKS):
        return (
            "a JSON array whose records have no conversations; write it as JSON lines, one record a line, for example "
            f"with `jq -c '.[]' {path.name} > {path.stem}.jsonl`"
        )
    return f"a JSON array of objects with {_listed(seen.keys)}, and without conversations"


def _of_lines(path: Path, text: str) -> Found:
    seen = _Seen.of(_lines(path))
    if not seen.objects:
        return _of_document(_TOP_KEY.findall(text))
    if benchmark := benchmark_of(seen.keys, RECORDS):
        return benchmark
    if any(key in seen.keys for key in _ASKS):
        return "jsonl", seen.image
    if seen.objects == 1:
        return _of_document(seen.keys)
    return f"JSON lines with {_listed(seen.keys)}, and without a question, conversations or messages"


def _elements(path: Path) -> Iterator[object]:
    return islice(read_array(path, LONGEST_RECORD), FIRST)


def _lines(path: Path) -> Iterator[object]:
    """The first lines that are JSON; one that is not is for the reader to count."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for _ in range(FIRST):
            line = file.readline(LONGEST_RECORD)
            try:
                yield loads(line)
            except json.JSONDecodeError:
                continue


def _of_document(keys: Collection[str]) -> Found:
    if document := benchmark_of(keys, DOCUMENTS):
        return document
    return f"one JSON object (with {_listed(keys)}); a dataset is an array of records, or an object a line"


def _listed(keys: Collection[str]) -> str:
    names = sorted(set(keys))
    more = ", ..." if len(names) > _SHOWN_KEYS else ""
    return ", ".join(name[:40] for name in names[:_SHOWN_KEYS]) + more or "no keys"
