"""A manifest with fields changed on purpose, sealed as if it had been written so."""

import json
from pathlib import Path

from m3po_dagster.storage.manifest import seal_of


def rewrite(manifest: Path, **changes: object) -> None:
    """Changes fields of the manifest in this file."""
    fields = json.loads(manifest.read_text()) | changes
    manifest.write_text(json.dumps(fields | {"seal": seal_of(fields)}))
