"""What differs between two adapters: settings and versions key by key, and the pairs they were trained on."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.lineage.manifests import Manifests
from m3po_dagster.lineage.pair_diff import KINDS, compared_pairs, counts_by_shard
from m3po_dagster.lineage.profile import Profile, Version, flattened, profile
from m3po_dagster.method.optimization.defaults import left_out
from m3po_dagster.storage.artifact import Artifact

TOPICS = {
    "source_dataset": "dataset",
    "base_model": "base model",
    "filtered_instructions": "filters",
    "sampling_scorer": "scorer between rounds",
    "candidates": "generation",
    "judge_probe": "judge's answers",
    "judge_identity": "judge",
    "mas_table": "scoring",
    "logprob_table": "confidence",
    "recipe_config": "recipe",
}
"""What the settings of an asset are called to a person."""

_ASKED = ("judge_probe", "judge_identity")
"""What may change while its settings stay: a provider can put another model behind a served judge."""

_ELSEWHERE = ("training", "seeds")
"""Keys of a recipe that the adapters themselves name."""


@dataclass(frozen=True)
class Difference:
    """One setting or version that differs; None is where an adapter has no such thing."""

    topic: str
    key: str
    first: Any
    second: Any

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Diff:
    """The difference between two adapters; `pairs` is the table of `pair_diff.compared_pairs`."""

    first: Profile
    second: Profile
    differences: tuple[Difference, ...]
    pairs: pa.Table

    @property
    def same_adapters(self) -> bool:
        """Whether two recipes stand on the very same trained adapters."""
        different = self.first.fingerprint != self.second.fingerprint
        return different and bool(self.first.adapters) and self.first.adapters == self.second.adapters

    def totals(self) -> dict[str, int]:
        """Pairs by kind over all shards."""
        counts = {item["values"]: item["counts"] for item in pc.value_counts(self.pairs["kind"]).to_pylist()}
        return {kind: counts.get(kind, 0) for kind in KINDS}

    def to_dict(self, pairs: bool = False) -> dict[str, Any]:
        """Plain JSON values; with `pairs` every pair that is not the same."""
        listed = {"listed": self.pairs.filter(pc.not_equal(self.pairs["kind"], "same")).to_pylist()} if pairs else {}
        return {
            "first": self.first.to_dict(),
            "second": self.second.to_dict(),
            "same_adapters": self.same_adapters,
            "differences": [item.to_dict() for item in self.differences],
            "pairs": {**self.totals(), "by_shard": counts_by_shard(self.pairs), **listed},
        }


def diff(manifests: Manifests, first: Artifact, second: Artifact) -> Diff:
    """Compares two adapters. Raises StoreError when the store no longer holds the pairs of one of them."""
    profiles = profile(manifests, first), profile(manifests, second)
    return Diff(*profiles, tuple(_differences(*profiles)), compared_pairs(manifests, first, second))


def _differences(first: Profile, second: Profile) -> Iterator[Difference]:
    for key in ("recipe", "seeds"):
        one, other = getattr(first, key), getattr(second, key)
        if one != other:
            yield Difference("adapter", key, one, other)
    for asset, topic in TOPICS.items():
        versions = first.versions.get(asset, ()), second.versions.get(asset, ())
        differences = list(_of_versions(topic, *versions))
        yield from differences
        contents = [", ".join(content for item in found for content in item.contents) for found in versions]
        if asset in _ASKED and not differences and contents[0] != contents[1]:
            yield Difference(topic, "content", *contents)
    one, other = first.training or {}, second.training or {}
    yield from _of_settings("training", _with_defaults(one, other), _with_defaults(other, one))
    codes = [_codes(item) for item in (first, second)]
    yield from _of_settings("code version", *codes)
    yield from _of_settings("library", *({k: ", ".join(v) for k, v in p.libraries.items()} for p in (first, second)))


def _of_versions(topic: str, first: tuple[Version, ...], second: tuple[Version, ...]) -> Iterator[Difference]:
    """Key by key when each side has one version; otherwise the list of versions."""
    sides = [[_settings(version) for version in versions] for versions in (first, second)]
    if all(len(side) <= 1 for side in sides):
        yield from _of_settings(topic, *(side[0] if side else None for side in sides))
    elif sides[0] != sides[1]:
        yield Difference(topic, "", *sides)


def _settings(version: Version) -> Any:
    if version.asset == "recipe_config" and isinstance(version.settings, dict):
        return {key: value for key, value in version.settings.items() if key not in _ELSEWHERE}
    return version.settings


def _with_defaults(training: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The training's settings, with those at their default that the other one names."""
    return {name: value for name, value in left_out(training).items() if name in beside} | dict(training)


def _of_settings(topic: str, first: Any, second: Any) -> Iterator[Difference]:
    one, other = dict(flattened(first)), dict(flattened(second))
    for key in sorted(set(one) | set(other)):
        if json.dumps(one.get(key)) != json.dumps(other.get(key)):
            yield Difference(topic, key, one.get(key), other.get(key))


def _codes(item: Profile) -> dict[str, str]:
    return {asset: ", ".join(sorted({str(v.code_version) for v in found})) for asset, found in item.versions.items()}
