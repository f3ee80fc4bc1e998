"""Texts and scores of some candidates, and nothing else of their tables."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m3po_dagster.storage.artifact import Artifact


def values(artifact: Artifact | None, column: str, candidate_ids: Iterable[str]) -> dict[str, Any]:
    """{candidate_id: value of a column} of those candidates that a table of candidates has; {} without an artifact."""
    if artifact is None:
        return {}
    table = artifact.table(columns=["candidate_id", column])
    kept = table.filter(pc.is_in(table["candidate_id"], value_set=pa.array(sorted(candidate_ids), pa.string())))
    return dict(zip(kept["candidate_id"].to_pylist(), kept[column].to_pylist(), strict=True))
