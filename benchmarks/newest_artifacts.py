"""What of a store a benchmark looks at: it may hold several versions of a part."""

from pathlib import Path

from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.store import ArtifactStore


def newest(store: Path, asset: str) -> dict[str, Artifact]:
    """The artifact of each partition that was made last."""
    made = sorted(ArtifactStore(store).list(asset), key=lambda artifact: artifact.manifest.created)
    return {artifact.key.partition: artifact for artifact in made}
