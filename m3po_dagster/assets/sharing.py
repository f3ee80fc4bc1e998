"""Recipes that come to the same training share its adapter: where it lies, and what it is known by.

An adapter is known by what it was trained on and how, never by the recipe that asked first: its fingerprint holds the
content of the pairs by shard, those of the training's settings that decide what comes out, and the seed. So a recipe
that is the same as an earlier one, or that only got another name, trains nothing; and what was asked of an adapter is
asked once.
"""

from collections.abc import Mapping

from m3po_dagster.lineage.manifests import ADAPTER, PAIRS, recipe_of, shard_of
from m3po_dagster.materialise import Work
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.fingerprint import fingerprint
from m3po_dagster.storage.store import ArtifactStore
from m3po_dagster.study import BASE_RECIPE

BASE_ADAPTER = "base"
"""What stands for "no adapter" in the tables."""

BASE = {"adapter_id": BASE_ADAPTER, "seed": 0, "partition": f"{BASE_RECIPE}|0"}
"""The base model, as one of `adapters_of`."""


def place_of(work: Work, seed: int) -> tuple[str, str]:
    """Asset and partition under which a seed of the recipe is trained: those of the first recipe that is the same.

    Two runs that train the same thing at once so meet at one lock, and the second finds what the first made.
    """
    return ADAPTER, f"{work.study.same_as(work.partition)}|{seed}"


def training_fingerprint(inputs: Mapping[str, Mapping[str, str]], settings: Mapping, code_version: str) -> str:
    """The fingerprint of a training by the content of its inputs, whichever recipe selected the pairs.

    `inputs` are references as manifests hold them, `settings` the training's with its seed.
    """
    versions = {}
    for item in inputs.values():
        asset, partition = item["asset"], item["partition"]
        where = shard_of(partition) if asset == PAIRS else partition
        versions[f"{asset}[{where}]"] = item["data_version"]
    return fingerprint(ADAPTER, "", code_version, settings, versions)


def trained_already(store: ArtifactStore, part: tuple[str, str], key: str) -> Artifact | None:
    """The adapter of this fingerprint, wherever it lies: also under the name of a recipe of before."""
    found = store.find(*part, key)
    return found or next((artifact for artifact in store.list(ADAPTER) if artifact.fingerprint == key), None)


def adapters_of(trained: Artifact) -> list[dict]:
    """The adapters of a recipe, one a seed, as rows of lora_adapter and the partition in which the store keeps each."""
    kept = trained.manifest.metadata["adapters"]
    rows = trained.table().to_pylist()
    return [{**row, "partition": kept[str(row["seed"])]["partition"]} for row in rows] if kept else [BASE]


def trained_as(trained: Artifact) -> list[str]:
    """The other recipes whose adapters are this one's too, because they come to the same training."""
    places = {recipe_of(item["partition"]) for item in trained.manifest.metadata["adapters"].values()}
    return sorted(places - {trained.manifest.partition})
