"""Which adapter a name means.

A recipe's name is no identity: a recipe that was edited has several adapters, and studies that share a store may use
the same name. What is current (by Dagster's event log, or by a study file) decides; where nothing says what is current,
a name with several adapters is refused with their list, never guessed. An event log knows one current adapter of a
name, that of the study that was run last: the reason names this study.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from m3po_dagster.graph import Part
from m3po_dagster.lineage.manifests import ADAPTER, RECIPE_ADAPTERS, Manifests, key_of, recipe_of, trained_for
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.collect import ADAPTER_ASSETS
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.names import ArtifactKey

_LISTED = 8


@dataclass(frozen=True)
class Current:
    """Which adapters are current: {(lora_adapter, recipe): fingerprint}, and who says so.

    `binding` tells whether what it doesn't name counts as not made (a study file), or as not known (an event log, which
    may belong to another study's project). `studies` names the study that each was made for, where that is known.
    """

    fingerprints: Mapping[Part, str]
    source: str
    binding: bool = False
    studies: Mapping[Part, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """An adapter, why it is the one that was meant, and the others of that name in the store, newest first."""

    artifact: Artifact
    reason: str
    others: tuple[Artifact, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        manifest = self.artifact.manifest
        return {
            **self.artifact.key._asdict(),
            "data_version": manifest.data_version,
            "created": manifest.created.isoformat(timespec="seconds"),
            "chosen_because": self.reason,
            "others_of_this_name": [other.fingerprint for other in self.others],
        }


def choose(manifests: Manifests, name: str, current: Current | None = None) -> Chosen:
    """The adapter that `name` means: a recipe, `recipe|seed`, or how a fingerprint begins (at least 4 digits).

    Raises StoreError when there is none, or when several fit and nothing says which of them is current (it lists them).
    """
    named = _named(manifests, name)
    if not named:
        return _by_fingerprint(manifests, name)
    chosen = _current(manifests, name, current) if current else None
    if chosen is None and current and current.binding:
        raise StoreError(
            f"the store {manifests.store.location} has no adapter {name!r} as {current.source} asks for it: "
            f"run the study, or name one of these by its fingerprint: {_listed(named)}"
        )
    if chosen is not None:
        study = current.studies.get((RECIPE_ADAPTERS, recipe_of(name)))
        reason = f"current by {current.source}" + (f", from a run of the study {study}" if study else "")
    elif len(named) == 1:
        chosen, reason = named[0], "the only one of this name in the store"
    else:
        raise StoreError(
            f"{len(named)} adapters in {manifests.store.location} are called {name!r} and nothing says which is "
            f"current: give the fingerprint of one, or the study file with --study: {_listed(named)}"
        )
    if recipe_of(chosen.key.partition) != recipe_of(name):
        reason += f"; {name} comes to the same training"
    return Chosen(chosen, reason, tuple(other for other in named if other.key != chosen.key))


def _named(manifests: Manifests, name: str) -> list[Artifact]:
    """The adapters of a name, newest first: a recipe's own, or those of its seeds when its training never ended.

    A seed's adapter has the name of every recipe that stands on it.
    """
    found = {a.key: a for asset in ADAPTER_ASSETS for a in manifests.all(asset) if a.key.partition == name}
    refs = [trained_for(head, name) for head in _of_recipe(manifests, recipe_of(name))]
    found |= {artifact.key: artifact for ref in refs if ref and (artifact := manifests.find(key_of(ref)))}
    if not found:
        found = {a.key: a for a in manifests.all(ADAPTER) if recipe_of(a.key.partition) == name}
    return sorted(found.values(), key=lambda artifact: artifact.manifest.created, reverse=True)


def _of_recipe(manifests: Manifests, recipe: str) -> list[Artifact]:
    return [artifact for artifact in manifests.all(RECIPE_ADAPTERS) if artifact.key.partition == recipe]


def _current(manifests: Manifests, name: str, current: Current) -> Artifact | None:
    recipe = recipe_of(name)
    fingerprint = current.fingerprints.get((RECIPE_ADAPTERS, recipe))
    head = manifests.find(ArtifactKey(RECIPE_ADAPTERS, recipe, fingerprint)) if fingerprint else None
    if head is None or name == recipe:
        return head
    ref = trained_for(head, name)
    return manifests.find(key_of(ref)) if ref else None


def _by_fingerprint(manifests: Manifests, name: str) -> Chosen:
    adapters = [artifact for asset in ADAPTER_ASSETS for artifact in manifests.all(asset)]
    fitting = [artifact for artifact in adapters if artifact.fingerprint.startswith(name)] if len(name) >= 4 else []
    if len(fitting) == 1:
        return Chosen(fitting[0], f"the only adapter whose fingerprint begins with {name[:16]}")
    if fitting:
        raise StoreError(f"{name!r} fits {len(fitting)} adapters: {_listed(fitting)}; give more digits")
    recipe = recipe_of(name)
    seeds = {a.key.partition for a in manifests.all(ADAPTER) if recipe_of(a.key.partition) == recipe}
    named = {
        key for head in _of_recipe(manifests, recipe) for key in head.manifest.inputs if key.startswith(f"{ADAPTER}[")
    }
    seeds |= {key.removeprefix(f"{ADAPTER}[").removesuffix("]") for key in named}
    if name != recipe and seeds:
        raise StoreError(
            f"no adapter in {manifests.store.location} is called {name!r}: of the recipe {recipe!r} there are "
            f"{', '.join(sorted(seeds))}"
        )
    recipes = sorted({recipe_of(artifact.key.partition) for artifact in adapters})
    raise StoreError(
        f"no adapter in {manifests.store.location} is of a recipe {name!r} or has a fingerprint that begins so: "
        f"there are adapters of {recipes}"
    )


def _listed(adapters: Sequence[Artifact]) -> str:
    shown = [
        f"{a.key.asset}[{a.key.partition}] {a.fingerprint[:16]} made {a.manifest.created:%Y-%m-%d %H:%M:%S}"
        for a in adapters[:_LISTED]
    ]
    return "; ".join(shown) + (f" and {len(adapters) - _LISTED} more" if len(adapters) > _LISTED else "")
