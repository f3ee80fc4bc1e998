"""A store's manifests, each read at most once, however many branches of a lineage lead to it."""

from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.manifest import InputRef, Manifest
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.storage.store import ArtifactStore

ADAPTER = "adapter"
"""One training: a recipe and a seed."""

RECIPE_ADAPTERS = "lora_adapter"
"""A recipe's adapters, one a seed."""

PAIRS = "preference_pairs"

TRAINING_SECONDS = "training seconds"
"""What an adapter's metadata calls the time of its whole training, that of the attempts before the last included."""


def key_of(ref: InputRef) -> ArtifactKey:
    """Where the store keeps an input."""
    return ArtifactKey(ref.asset, ref.partition, ref.fingerprint)


def shard_of(partition: str) -> str:
    """The shard in a partition key: the last of its dimensions."""
    return partition.split("|")[-1]


def recipe_of(partition: str) -> str:
    """The recipe in the partition key of pairs or adapters: the first of its dimensions."""
    return partition.split("|")[0]


def trained_for(recipe_adapters: Artifact, recipe_and_seed: str) -> InputRef | None:
    """The adapter that a recipe's adapters have for `recipe|seed`.

    It lies under the name of another recipe where two come to the same training.
    """
    return recipe_adapters.manifest.inputs.get(f"{ADAPTER}[{recipe_and_seed}]")


def seconds_of(manifest: Manifest) -> float:
    """Seconds that making an object took.

    A manifest's own are those of the run that committed it; a training that went on from a checkpoint took longer.
    """
    return max(manifest.seconds, manifest.metadata.get(TRAINING_SECONDS, 0.0))


class Manifests:
    """Reads a store's manifests and remembers them. A long-lived process makes a new one to look again."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._found: dict[ArtifactKey, Artifact | None] = {}
        self._listed: dict[str, list[Artifact]] = {}

    def find(self, key: ArtifactKey) -> Artifact | None:
        """The committed artifact under `key`, or None."""
        if key not in self._found:
            self._found[key] = self.store.find(*key)
        return self._found[key]

    def all(self, asset: str) -> list[Artifact]:
        """Every committed artifact of an asset, by partition, oldest first."""
        if asset not in self._listed:
            self._listed[asset] = list(self.store.list(asset))
            self._found.update((artifact.key, artifact) for artifact in self._listed[asset])
        return self._listed[asset]

    def used(self, ref: InputRef) -> Artifact | None:
        """The input with the content it had when it was used; None when that is no longer in the store."""
        artifact = self.find(key_of(ref))
        return artifact if artifact and artifact.data_version == ref.data_version else None

    def inputs(self, artifact: Artifact, asset: str) -> list[InputRef]:
        """An artifact's direct inputs of one asset, by name."""
        return [ref for _, ref in sorted(artifact.manifest.inputs.items()) if ref.asset == asset]
