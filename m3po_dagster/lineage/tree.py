"""The tree of what an artifact was made from, back to the dataset files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from m3po_dagster.lineage.manifests import Manifests, key_of
from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.manifest import InputRef
from m3po_dagster.storage.names import ArtifactKey


@dataclass(frozen=True)
class Node:
    """One artifact of a lineage and what it was made from.

    `data_version` is the content as it was used. `remark` is empty, or says that the artifact is no longer in the
    store or has other content by now.
    """

    name: str
    asset: str
    partition: str
    fingerprint: str
    data_version: str
    remark: str = ""
    created: str | None = None
    code_version: str | None = None
    settings: Any = None
    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    inputs: tuple["Node", ...] = ()

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What tells two nodes of a tree apart: where the store keeps it, and the content that was used."""
        return self.asset, self.partition, self.fingerprint, self.data_version

    def to_dict(self) -> dict[str, Any]:
        """The artifact as plain JSON values; its inputs by name, fingerprint and content, not spelled out again."""
        own = {name: value for name, value in vars(self).items() if name != "name"}
        named = {
            node.name: {"fingerprint": node.fingerprint, "data_version": node.data_version} for node in self.inputs
        }
        return {**own, "inputs": named}


def trace(manifests: Manifests, artifact: Artifact) -> Node:
    """The tree of inputs of a committed artifact. Raises StoreError when a manifest leads back to itself."""
    return _Walk(manifests).node(artifact.key.asset, artifact, artifact.data_version)


def each(root: Node) -> Iterator[Node]:
    """Every artifact of a tree once, the root first."""
    seen: set[tuple[str, str, str, str]] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if node.identity not in seen:
            seen.add(node.identity)
            yield node
            pending.extend(reversed(node.inputs))


class _Walk:
    """Builds each artifact's inputs once."""

    def __init__(self, manifests: Manifests) -> None:
        self._manifests = manifests
        self._inputs: dict[ArtifactKey, tuple[Node, ...]] = {}
        self._path: list[ArtifactKey] = []

    def node(self, name: str, artifact: Artifact, used_version: str) -> Node:
        manifest = artifact.manifest
        differs = used_version != artifact.data_version
        return Node(
            name=name,
            asset=manifest.asset,
            partition=manifest.partition,
            fingerprint=manifest.fingerprint,
            data_version=used_version,
            remark=f"made again since, now with content {artifact.data_version[:12]}" if differs else "",
            created=manifest.created.isoformat(timespec="seconds"),
            code_version=manifest.code_version,
            settings=manifest.settings,
            rows={table: entry.rows for table, entry in manifest.tables.items()},
            files={path: entry.sha256 for path, entry in manifest.files.items()},
            inputs=self._inputs_of(artifact),
        )

    def _inputs_of(self, artifact: Artifact) -> tuple[Node, ...]:
        key = artifact.key
        if key in self._path:
            raise StoreError(f"{key} is an input of itself: its manifest or one it names is not what the store wrote")
        if key not in self._inputs:
            self._path.append(key)
            self._inputs[key] = tuple(self._input(name, ref) for name, ref in sorted(artifact.manifest.inputs.items()))
            self._path.pop()
        return self._inputs[key]

    def _input(self, name: str, ref: InputRef) -> Node:
        artifact = self._manifests.find(key_of(ref))
        if artifact is None:
            return Node(name, *key_of(ref), ref.data_version, remark="no longer in the store")
        return self.node(name, artifact, ref.data_version)
