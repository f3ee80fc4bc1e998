"""Which artifacts a name means in an export: what the study file asks for now, or what a fingerprint names."""

from collections.abc import Sequence
from dataclasses import dataclass

from m3po_dagster.export.folder import ExportError
from m3po_dagster.graph import Part
from m3po_dagster.identity import Identities
from m3po_dagster.lineage.manifests import (
    ADAPTER,
    PAIRS,
    RECIPE_ADAPTERS,
    Manifests,
    key_of,
    recipe_of,
    shard_of,
)
from m3po_dagster.lineage.profile import pairs_inputs
from m3po_dagster.lineage.study import held_parts
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.study import Study


@dataclass(frozen=True)
class ShardPairs:
    """A shard's pairs of a recipe, and what they were made from, with the content that was used.

    The manifests of `mas`, `judge`, `recipe`, `model` and `dataset` are for the card; None when no longer in the store.
    """

    pairs: Artifact
    candidates: Artifact
    instructions: Artifact
    mas: Artifact | None
    judge: Artifact | None
    recipe: Artifact | None
    model: Artifact | None
    dataset: Artifact | None

    @property
    def shard(self) -> str:
        """The shard."""
        return shard_of(self.pairs.key.partition)


@dataclass(frozen=True)
class ChosenAdapter:
    """One seed's adapter. `recipe` is the recipe that was asked for, None where a fingerprint was.

    `head` are the recipe's adapters that it is one of, as the study asks for them; None when the study doesn't.
    """

    artifact: Artifact
    seed: int
    recipe: str | None
    head: Artifact | None


class Made:
    """What a store holds of a study as its file is now. Raises OSError or ValueError as `held_parts` does.

    `assumed` has a sentence for each thing that the file doesn't decide.
    """

    def __init__(self, manifests: Manifests, study: Study, identities: Identities) -> None:
        self.manifests, self.study = manifests, study
        held = held_parts(manifests, study, identities)
        self._parts, self.assumed = held.parts, held.assumed

    def part(self, asset: str, partition: str = "") -> Artifact | None:
        """The artifact that the study asks for; None when it isn't made."""
        head = self._parts.get((asset, partition))
        return self.manifests.find(ArtifactKey(asset, partition, head.fingerprint)) if head else None

    def pairs(self, name: str) -> list[ShardPairs]:
        """The pairs that `name` means: a recipe, `recipe|shard`, or how a fingerprint of pairs begins.

        Raises ExportError for a recipe without pairs, or whose pairs are not made or stand on what the store no longer
        holds; StoreError for a fingerprint that fits none or several.
        """
        recipe, _, shard = name.partition("|")
        if recipe not in self.study.recipes:
            return [self._with_inputs(self.manifests.store.resolve(name, [PAIRS]))]
        if self.study.recipes[recipe].selection is None:
            raise ExportError(f"recipe {recipe!r} selects no pairs: name another")
        if shard and shard not in self.study.shards:
            raise ExportError(f"{name!r}: there is no shard {shard!r}; there are {', '.join(self.study.shards)}")
        wanted = [(PAIRS, f"{recipe}|{one}") for one in self.study.shards if one == shard or not shard]
        found = {part: self.part(*part) for part in wanted}
        if missing := [part for part, artifact in found.items() if artifact is None]:
            raise ExportError(f"{_named(missing)} not made as the study asks: bring it up to date with `m3po run`")
        return [self._with_inputs(artifact) for artifact in found.values()]

    def adapter(self, name: str, seed: int | None = None) -> ChosenAdapter:
        """The adapter that `name` means: a recipe, of which `seed` is taken, or how an adapter's fingerprint begins.

        Without `seed` the first of the recipe's seeds. Raises ExportError for a recipe that trains nothing, that has
        not that seed, or is not trained; StoreError for a fingerprint that fits none or several.
        """
        if name not in self.study.recipes:
            return self._adapter_by_fingerprint(name, seed)
        recipe = self.study.recipes[name]
        if not recipe.trains:
            raise ExportError(f"recipe {name!r} trains no adapter: name another")
        seed = recipe.seeds[0] if seed is None else seed
        if seed not in recipe.seeds:
            raise ExportError(f"recipe {name!r} has no seed {seed}; it has {', '.join(map(str, recipe.seeds))}")
        head = self.part(RECIPE_ADAPTERS, name)
        artifact = self._of_seed(head, seed) if head else None
        if artifact is None:
            raise ExportError(f"recipe {name!r} is not trained as the study asks: bring it up to date with `m3po run`")
        return ChosenAdapter(artifact, seed, name, head)

    def trained_on(self, adapter: Artifact) -> list[ShardPairs]:
        """The pairs that an adapter was trained on, by shard.

        Raises StoreError for an adapter that was trained on none, ExportError when they are no longer in the store.
        """
        found = []
        for ref in pairs_inputs(self.manifests, adapter).values():
            pairs = self.manifests.used(ref)
            if pairs is None:
                raise ExportError(f"the store no longer holds {key_of(ref)}, which {adapter.key} was trained on")
            found.append(self._with_inputs(pairs))
        return found

    def _of_seed(self, head: Artifact, seed: int) -> Artifact | None:
        # By the table, not by the partition's name: recipes that are equal share an adapter.
        fingerprints = [row["fingerprint"] for row in head.table().to_pylist() if row["seed"] == seed]
        refs = [ref for ref in self.manifests.inputs(head, ADAPTER) if ref.fingerprint in fingerprints]
        return self.manifests.used(refs[0]) if refs else None

    def _adapter_by_fingerprint(self, prefix: str, seed: int | None) -> ChosenAdapter:
        if seed is not None:
            raise ExportError(
                f"{prefix!r} is no recipe of the study, and a fingerprint names one adapter: leave --seed"
            )
        artifact = self.manifests.store.resolve(prefix, [ADAPTER])
        heads = [head for name in self.study.recipes if (head := self.part(RECIPE_ADAPTERS, name))]
        mine = [
            head
            for head in heads
            if any(ref.fingerprint == artifact.fingerprint for ref in self.manifests.inputs(head, ADAPTER))
        ]
        return ChosenAdapter(artifact, artifact.manifest.settings["seed"], None, mine[0] if mine else None)

    def _with_inputs(self, pairs: Artifact) -> ShardPairs:
        candidates = self._input(pairs, "candidates")
        instructions = self._input(candidates, "filtered_instructions")
        if candidates is None or instructions is None:
            gone = "candidates" if candidates is None else "prompts"
            raise ExportError(
                f"the store no longer holds the {gone} that {pairs.key} was made from: run its study again"
            )
        mas = self._input(pairs, "mas_table")
        return ShardPairs(
            pairs=pairs,
            candidates=candidates,
            instructions=instructions,
            mas=mas,
            judge=self._input(mas, "judge_identity"),
            recipe=self._input(pairs, "recipe_config"),
            model=self._input(candidates, "base_model"),
            dataset=self._input(instructions, "source_dataset"),
        )

    def _input(self, artifact: Artifact | None, asset: str) -> Artifact | None:
        refs = self.manifests.inputs(artifact, asset) if artifact else []
        return self.manifests.used(refs[0]) if refs else None


def recipe_name(shards: Sequence[ShardPairs]) -> str:
    """The recipe whose pairs they are."""
    return recipe_of(shards[0].pairs.key.partition)


def _named(parts: Sequence[Part]) -> str:
    names = ", ".join(f"{asset}[{partition}]" for asset, partition in parts[:4])
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"{names}{more} {'is' if len(parts) == 1 else 'are'}"
