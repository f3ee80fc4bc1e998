"""Lineage from manifests alone: which pairs trained an adapter, and what those came from, back to the dataset files."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.collect import ADAPTER_ASSETS
from m3po_dagster.storage.errors import StoreError
from m3po_dagster.storage.manifest import InputRef
from m3po_dagster.storage.names import ArtifactKey
from m3po_dagster.storage.store import ArtifactStore

PAIRS_ASSET = "preference_pairs"
_SHARD_COLUMN = pa.field("shard", pa.string(), nullable=False, metadata={"description": "the pairs' shard"})


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

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain JSON values."""
        return {**vars(self), "inputs": [node.to_dict() for node in self.inputs]}


def lineage(store: ArtifactStore, asset: str, partition: str, fingerprint: str) -> Node:
    """The tree of inputs of a committed artifact. Raises StoreError when it isn't in the store."""
    artifact = store.find(asset, partition, fingerprint)
    if artifact is None:
        raise StoreError(f"{ArtifactKey(asset, partition, fingerprint)} is not in the store {store.root}")
    return _Walk(store).node(asset, artifact, artifact.data_version)


class _Walk:
    """Reads each manifest once, however many branches lead to it."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._found: dict[ArtifactKey, Artifact | None] = {}
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
        key = ArtifactKey(ref.asset, ref.partition, ref.fingerprint)
        if key not in self._found:
            self._found[key] = self._store.find(*key)
        artifact = self._found[key]
        if artifact is None:
            return Node(name, *key, ref.data_version, remark="no longer in the store")
        return self.node(name, artifact, ref.data_version)


def find_adapter(store: ArtifactStore, name: str) -> Artifact:
    """The adapter called `name`: the newest of a recipe, or the one whose fingerprint begins so.

    Raises StoreError when there is none, or when several fingerprints begin so (it lists them).
    """
    adapters = [artifact for asset in ADAPTER_ASSETS for artifact in store.list(asset)]
    named = [a for a in adapters if name in (a.key.partition, a.key.partition.split("|")[0])]
    if named:
        return max(named, key=lambda artifact: artifact.manifest.created)
    if len(name) >= 4 and set(name) <= set("0123456789abcdef"):
        return store.resolve(name, ADAPTER_ASSETS)
    recipes = sorted({artifact.key.partition.split("|")[0] for artifact in adapters})
    raise StoreError(f"no adapter of a recipe {name!r} in {store.root}: there are adapters of {recipes}")


def adapter_lineage(store: ArtifactStore, name: str) -> Node:
    """The lineage of `find_adapter(store, name)`."""
    return lineage(store, *find_adapter(store, name).key)


def adapter_pairs(store: ArtifactStore, name: str) -> tuple[dict[str, str], pa.Table]:
    """Which pairs trained an adapter: {shard: fingerprint of its pairs}, and the pairs with their shard in front.

    Raises StoreError when there is no such adapter, when it was trained on no pairs (supervised fine-tuning on
    other data), or when some of its pairs are not in the store with the content it was trained on.
    """
    root = adapter_lineage(store, name)
    nodes: dict[str, Node] = {}
    pending = list(root.inputs)
    while pending:
        node = pending.pop()
        if node.asset != PAIRS_ASSET:
            pending.extend(node.inputs)
            continue
        shard = node.partition.split("|")[-1]
        if nodes.setdefault(shard, node).data_version != node.data_version:
            raise StoreError(
                f"{name} was trained on two versions of the pairs of shard {shard}: name one adapter of it"
            )
    if not nodes:
        raise StoreError(f"{root.asset} {name} ({root.fingerprint[:12]}) was not trained on preference pairs")
    tables = []
    for shard, node in sorted(nodes.items()):
        artifact = store.find(node.asset, node.partition, node.fingerprint)
        if artifact is None or node.remark:
            pairs = f"{node.asset}[{node.partition}] {node.fingerprint}"
            raise StoreError(f"the pairs of shard {shard} that trained {name}, {pairs}, are {node.remark}")
        table = artifact.table()
        tables.append(table.add_column(0, _SHARD_COLUMN, pa.repeat(pa.scalar(shard), table.num_rows)))
    return {shard: node.fingerprint for shard, node in sorted(nodes.items())}, pa.concat_tables(tables)


def render(node: Node) -> Any:
    """The lineage as a `rich` tree: each artifact spelled out once, what has no inputs with its settings."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(_label(node)))
    shown: set[tuple[str, str, str]] = set()
    pending = [(tree, node)]
    while pending:
        branch, current = pending.pop()
        key = (current.asset, current.partition, current.fingerprint)
        if key in shown:
            branch.label.append(", as above")
            continue
        shown.add(key)
        for line in [] if current.inputs else _settings_lines(current.settings, ""):
            branch.add(Text(line))
        pending.extend(reversed([(branch.add(Text(_label(child))), child) for child in current.inputs]))
    return tree


def _label(node: Node) -> str:
    name = f"{node.asset}[{node.partition}]" if node.partition else node.asset
    counts = [f"{rows:,} {'rows' if table == 'data' else table}" for table, rows in node.rows.items()]
    if node.files:
        counts.append(f"{len(node.files)} files")
    facts = [node.fingerprint[:12], f"content {node.data_version[:12]}", *counts, node.remark]
    return f"{name}  {', '.join(fact for fact in facts if fact)}"


def _settings_lines(settings: Any, place: str) -> list[str]:
    if isinstance(settings, dict):
        return [
            line for key, value in settings.items() for line in _settings_lines(value, f"{place}.{key}".lstrip("."))
        ]
    return [] if settings is None else [f"{place}: {settings}"]
