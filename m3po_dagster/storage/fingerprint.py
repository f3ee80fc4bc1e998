"""Fingerprints: one hash for everything an artifact is made from."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

_EXACT_FLOAT = 2**53


def canonical_json(value: object) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII; equal numbers give equal text (1.0 is 1).

    Takes None, booleans, integers, finite floats, strings, lists or tuples, and mappings with string keys.
    Raises TypeError or ValueError that name the place inside `value`.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: object, place: str) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}: only finite numbers have a canonical form")
        return int(value) if value.is_integer() and abs(value) < _EXACT_FLOAT else float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}: keys are strings")
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{place} is a {type(value).__name__}: give plain JSON values (model_dump(mode='json') for settings)"
    )


def fingerprint(asset: str, partition: str, code_version: str, settings: object, inputs: Mapping[str, str]) -> str:
    """sha256 (hex) of what an artifact is made from.

    `partition` is "" without partitions; `inputs` maps each input's name to its data version.
    """
    parts = {
        "asset": asset,
        "partition": partition,
        "code_version": code_version,
        "settings": settings,
        "inputs": inputs,
    }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
