"""Whether a text file is a JSON array of records or JSON lines, and of what: told by its first records."""

import json
import re
from itertools import islice
from pathlib import Path

from m3po_dagster.datasets.benchmark_layouts import DOCUMENTS, RECORDS, BenchmarkLayout, benchmark_of
from m3po_dagster.datasets.json_array import read_array

LONGEST_LINE = 16_000_000
FIRST = 50
"""Records that are looked at: text-only ones, which name no image, often stand together."""
_TOP_KEY = re.compile(r'"([^"\\]{1,80})"\s*:')
_ASKS = ("conversations", "messages", "question")

Found = tuple[str, str | None] | BenchmarkLayout | str
"""Format and the first image named; or the benchmark that it is; or, as words, what it is instead."""


def of_text(path: Path, head: bytes) -> Found:
    """What a text file is that starts with these bytes. Raises DatasetError where its first records can't be read."""
    text = head.decode("utf-8-sig", errors="replace")
    start = text.lstrip()
    if start.startswith("["):
        return _of_array(path)
    if start.startswith("{"):
        return _of_lines(path, text)
    if "\ufffd" in text[:-4] and head.count(b"\0"):
        return "binary data of no kind that is known"
    return f"text that starts with {start[:20]!r}, which is no JSON"


def _of_array(path: Path) -> Found:
    records = [record for record in islice(read_array(path), FIRST) if isinstance(record, dict)]
    if not records:
        return "a JSON array that does not begin with objects"
    keys = set().union(*records)
    if "conversations" in keys:
        return "llava_instruct", _first_image(records)
    if benchmark := benchmark_of(keys, RECORDS):
        return benchmark
    if any(key in keys for key in _ASKS):
        return (
            "a JSON array whose records have no conversations; write it as JSON lines, one record a line, for example "
            f"with `jq -c '.[]' {path.name} > {path.stem}.jsonl`"
        )
    return f"a JSON array of objects with {_listed(keys)}, and without conversations"


def _of_lines(path: Path, text: str) -> Found:
    records, broken = [], 0
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for _ in range(FIRST):
            line = file.readline(LONGEST_LINE)
            if not line:
                break
            try:
                record = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                broken += 1
                continue
            if isinstance(record, dict):
                records.append(record)
    if not records or (broken > len(records) and len(records) < 2):
        return _of_document(text)
    keys = set().union(*records)
    if benchmark := benchmark_of(keys, RECORDS):
        return benchmark
    if len(records) == 1 and (document := benchmark_of(keys, DOCUMENTS)):
        return document
    if any(key in keys for key in _ASKS):
        return "jsonl", _first_image(records)
    return f"JSON lines with {_listed(keys)}, and without a question, conversations or messages"


def _of_document(text: str) -> Found:
    keys = _TOP_KEY.findall(text)
    if document := benchmark_of(keys, DOCUMENTS):
        return document
    return (
        f"one JSON object (with {_listed(dict.fromkeys(keys))}); a dataset is an array of records, or an object a line"
    )


def _first_image(records: list[dict]) -> str | None:
    return next((record["image"] for record in records if isinstance(record.get("image"), str)), "")


def _listed(keys) -> str:
    shown = [str(key)[:40] for key in list(keys)[:8]]
    return ", ".join(sorted(shown)) + (", ..." if len(keys) > len(shown) else "") if shown else "no keys"
