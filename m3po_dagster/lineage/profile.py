"""What an adapter is, in short: recipe, seeds, pairs by shard, and the versions of everything they came from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m3po_dagster.lineage.manifests import ADAPTER, PAIRS, Manifests, key_of, recipe_of, shard_of
from m3po_dagster.lineage.tree import Node, trace
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.fingerprint import canonical_json
from m3po_dagster.storage.manifest import InputRef

TRAINED_ON_COLUMNS = ("shard", "pairs", "no pair", "pairs fingerprint", "pairs content", "mas fingerprint", "judge")
_SHORT = 12


@dataclass(frozen=True)
class Version:
    """One set of settings of an asset among what an adapter came from, and the contents made with it.

    An asset with shards has one content each; several versions of an asset without shards mean that the shards' pairs
    were made at different times, and that making them again gave the same pairs.
    """

    asset: str
    code_version: str | None
    settings: Any
    contents: tuple[str, ...]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "contents": list(self.contents)}


@dataclass(frozen=True)
class Profile:
    """An adapter in short.

    `trained_on` has a row a shard (see `trained_on_rows`), `versions` those of each asset, `adapters` the fingerprint
    of each trained adapter by its place in the store, `recipe|seed`.
    """

    asset: str
    partition: str
    fingerprint: str
    data_version: str
    created: str
    seeds: tuple[int, ...]
    adapters: Mapping[str, str]
    training: Any
    trained_on: tuple[Mapping[str, object], ...]
    versions: Mapping[str, tuple[Version, ...]]
    libraries: Mapping[str, tuple[str, ...]]

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return recipe_of(self.partition)

    @property
    def shared_with(self) -> tuple[str, ...]:
        """Other recipes under whose names its adapters lie: they come to the same training."""
        return tuple(sorted({recipe_of(place) for place in self.adapters} - {self.recipe}))

    @property
    def pairs(self) -> int:
        """Number of pairs over all shards that the store still holds."""
        return sum(row["pairs"] or 0 for row in self.trained_on)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("asset", "recipe", "fingerprint", "data_version", "created")},
            "seeds": list(self.seeds),
            "adapters": dict(self.adapters),
            "shared_with": list(self.shared_with),
            "pairs": self.pairs,
            "training": self.training,
            "trained_on": list(self.trained_on),
            "versions": {asset: [item.to_dict() for item in found] for asset, found in self.versions.items()},
            "libraries": {name: list(found) for name, found in self.libraries.items()},
        }


def pairs_inputs(manifests: Manifests, artifact: Artifact) -> dict[str, InputRef]:
    """{shard: the pairs an adapter was trained on}; of a recipe's adapters, the pairs that the recipe names itself.

    Raises StoreError when a shard is named with two contents.
    """
    refs = manifests.inputs(artifact, PAIRS)
    if not refs:
        refs = [ref for seed in trainings(manifests, artifact) for ref in manifests.inputs(seed, PAIRS)]
    found: dict[str, InputRef] = {}
    for ref in refs:
        if found.setdefault(shard_of(ref.partition), ref).data_version != ref.data_version:
            raise StoreError(
                f"{artifact.key} was trained on two versions of the pairs of shard {shard_of(ref.partition)}: "
                "name one adapter of it"
            )
    return dict(sorted(found.items()))


def trainings(manifests: Manifests, artifact: Artifact) -> list[Artifact]:
    """The trained adapters of a recipe that the store holds, one a seed; of a trained adapter, itself."""
    if artifact.key.asset == ADAPTER:
        return [artifact]
    return [found for ref in manifests.inputs(artifact, ADAPTER) if (found := manifests.find(key_of(ref)))]


def trained_on_rows(manifests: Manifests, artifact: Artifact) -> list[dict[str, object]]:
    """Which pairs trained an adapter, a row a shard, with the columns TRAINED_ON_COLUMNS.

    `no pair` counts prompts; `judge` is the content hash of judge_identity that the scores were made with.
    What the store no longer holds is None.
    """
    rows = []
    for shard, ref in pairs_inputs(manifests, artifact).items():
        pairs = manifests.used(ref)
        mas = _input(manifests, pairs, "mas_table")
        judge = _input(manifests, manifests.used(mas) if mas else None, "judge_identity")
        tables = pairs.manifest.tables if pairs else {}
        values = (
            shard,
            tables["data"].rows if "data" in tables else None,
            tables["dropped"].rows if "dropped" in tables else None,
            ref.fingerprint,
            ref.data_version,
            mas.fingerprint if mas else None,
            judge.data_version if judge else None,
        )
        rows.append(dict(zip(TRAINED_ON_COLUMNS, values, strict=True)))
    return rows


def abridged(rows: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """The rows for a person: hashes cut to 12 digits, a dash for what is no longer in the store."""
    return [{name: _abridged(value) for name, value in row.items()} for row in rows]


def profile(manifests: Manifests, artifact: Artifact) -> Profile:
    """The profile of an adapter or of a recipe's adapters. Raises StoreError as `trace` and `pairs_inputs` do."""
    seeds = trainings(manifests, artifact)
    settings = [seed.manifest.settings for seed in seeds if isinstance(seed.manifest.settings, dict)]
    versions = _versions(manifests, artifact)
    recipes = versions.get("recipe_config", ())
    training = settings[0].get("training") if settings else None
    if training is None and recipes:
        training = recipes[0].settings.get("training")
    libraries: dict[str, set[str]] = {}
    for seed in seeds or [artifact]:
        for name, version in seed.manifest.libraries.items():
            libraries.setdefault(name, set()).add(version)
    manifest = artifact.manifest
    return Profile(
        asset=manifest.asset,
        partition=manifest.partition,
        fingerprint=manifest.fingerprint,
        data_version=manifest.data_version,
        created=manifest.created.isoformat(timespec="seconds"),
        seeds=tuple(sorted(item["seed"] for item in settings if "seed" in item)),
        adapters={seed.key.partition: seed.fingerprint for seed in seeds},
        training=training,
        trained_on=tuple(trained_on_rows(manifests, artifact)),
        versions=versions,
        libraries={name: tuple(sorted(found)) for name, found in sorted(libraries.items())},
    )


def flattened(settings: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested settings; an empty mapping counts as a value."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from flattened(value, f"{place}.{key}".lstrip("."))
    elif settings is not None or place:
        yield place, settings


def _versions(manifests: Manifests, artifact: Artifact) -> dict[str, tuple[Version, ...]]:
    """Settings and contents by asset, of the artifacts with the fewest steps to the adapter.

    What came out the same is not made again, so longer ways may lead to what was there before: the adapter's own
    filtered_instructions name the dataset as it was trained on, those of a shard's pairs perhaps an earlier one.
    """
    found: dict[str, dict[str, list[Node]]] = {}
    root = trace(manifests, artifact)
    level = [node for node in root.inputs if node.asset != ADAPTER]
    level = level or [node for seed in root.inputs for node in seed.inputs]
    seen: set[tuple[str, str, str, str]] = set()
    while level:
        level = [node for node in {node.identity: node for node in level}.values() if node.identity not in seen]
        seen.update(node.identity for node in level)
        nearest = {node.asset for node in level} - set(found)
        for node in level:
            if node.asset in nearest:
                same = canonical_json([node.code_version, node.settings])
                found.setdefault(node.asset, {}).setdefault(same, []).append(node)
        level = [child for node in level for child in node.inputs]
    return {
        asset: tuple(
            Version(
                asset=asset,
                code_version=nodes[0].code_version,
                settings=nodes[0].settings,
                contents=tuple(sorted({node.data_version for node in nodes})),
                rows=sum(node.rows.get("data", 0) for node in nodes),
            )
            for _, nodes in sorted(by_settings.items())
        )
        for asset, by_settings in sorted(found.items())
    }


def _input(manifests: Manifests, artifact: Artifact | None, asset: str) -> InputRef | None:
    refs = manifests.inputs(artifact, asset) if artifact else []
    return refs[0] if refs else None


def _abridged(value: object) -> object:
    if value is None:
        return "-"
    return value[:_SHORT] if isinstance(value, str) and len(value) == 64 else value
