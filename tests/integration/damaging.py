"""Damages committed artifacts on purpose, each in a place where its hashes must tell."""

from pathlib import Path

from m3po_dagster.storage.artifact import Artifact
from m3po_dagster.storage.errors import Damaged


def damage(artifact: Artifact, column: str | None = None) -> Path:
    """Flips a bit of the artifact's largest file so that what is read is not what was committed; gives the file.

    With `column`, one that spoils this column of its table `data`.
    """
    manifest = artifact.manifest
    sizes = {f"{name}.parquet": entry.bytes for name, entry in manifest.tables.items() if entry.rows}
    sizes |= {name: entry.bytes for name, entry in manifest.files.items()}
    name = "data.parquet" if column or not sizes else max(sizes, key=sizes.__getitem__)
    path = artifact.folder / name
    was = path.read_bytes()
    for place in range(4 if column else len(was) // 3, len(was)):
        path.write_bytes(was[:place] + bytes([was[place] ^ 4]) + was[place + 1 :])
        try:
            artifact.table("data", [column]) if column else artifact.check_content()
        except Damaged:
            return path
    raise AssertionError(f"no flipped bit of {path} was noticed")
