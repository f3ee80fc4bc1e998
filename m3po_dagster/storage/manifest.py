"""The manifest: what an artifact is, what it was made from, and by what. Its presence is the commit."""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from m3po_dagster.storage.fingerprint import canonical_json

FORMAT = 2
"""2: a manifest is sealed. Those of format 1 are read as they are."""
ATTEMPT = "attempt-[0-9a-f]{16}"
_LIBRARIES = ("torch", "transformers", "trl", "peft", "open_clip_torch", "dagster", "pyarrow", "m3po-dagster")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputRef(_Record):
    """One input of an artifact."""

    asset: str = Field(description="asset that made it")
    partition: str = Field(description="partition of the asset; empty without partitions")
    fingerprint: str = Field(description="where the store keeps it")
    data_version: str = Field(description="hash of its content as it was used")


class ColumnEntry(_Record):
    """One column of a table."""

    type: str = Field(description="Arrow type")
    hash: str = Field(description="content hash, independent of the Parquet encoding")


class TableEntry(_Record):
    """One table of an artifact, in the file NAME.parquet."""

    rows: int = Field(ge=0, description="number of rows")
    columns: dict[str, ColumnEntry] = Field(description="its columns by name, in their order")
    bytes: int = Field(ge=0, description="size of the Parquet file")
    hash: str = Field(description="content hash over all columns")


class FileEntry(_Record):
    """One file of an artifact."""

    bytes: int = Field(ge=0, description="size of the file")
    sha256: str = Field(description="hash of its bytes")


class Manifest(_Record):
    """Everything the store knows about one artifact."""

    format: int = Field(default=FORMAT, description="version of this layout")
    asset: str = Field(description="asset that made it")
    partition: str = Field(description="partition key; empty when the asset has no partitions")
    fingerprint: str = Field(description="hash of what it was made from: name, code version, settings, inputs")
    data_version: str = Field(description="hash of its content: tables and files")
    code_version: str = Field(description="version of the code that made it")
    settings: Any = Field(description="the settings that matter for the content")
    inputs: dict[str, InputRef] = Field(description="what it was made from, by the input's name")
    tables: dict[str, TableEntry] = Field(description="its tables by name")
    files: dict[str, FileEntry] = Field(description="its other files by path inside the artifact")
    libraries: dict[str, str] = Field(description="versions of the libraries at work")
    python: str = Field(description="version of Python")
    platform: str = Field(description="operating system and machine")
    created: datetime = Field(description="when it was committed, UTC")
    seconds: float = Field(ge=0, description="from opening the draft to the commit, in the run that committed it")
    metadata: dict[str, Any] = Field(description="counts, timings, device, cost: does not count for the fingerprint")
    attempt: str = Field(
        default="",
        pattern=f"^({ATTEMPT})?$",
        description="folder that holds its tables and files beside the manifest; empty, and left out, where they lie "
        "right beside it. In a bucket every attempt at an artifact writes into a folder of its own",
    )
    seal: str = Field("", description="hash of all the other fields, which tells a damaged manifest")

    @field_validator("files", "tables")
    @classmethod
    def _inside(cls, entries: dict[str, Any]) -> dict[str, Any]:
        for name in entries:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name:
                raise ValueError(f"{name!r} leads out of the artifact's folder")
        return entries

    @property
    def bytes(self) -> int:
        """Size of all tables and files."""
        return sum(entry.bytes for entry in (*self.tables.values(), *self.files.values()))

    def to_json(self) -> bytes:
        """Indented JSON, in the order of the fields."""
        return (json.dumps(self.fields(), indent=1) + "\n").encode()

    def fields(self) -> dict[str, Any]:
        """Its fields as its JSON has them."""
        return self.model_dump(mode="json", exclude=set() if self.attempt else {"attempt"})

    def sealed(self) -> "Manifest":
        """The same with its seal."""
        return self.model_copy(update={"seal": seal_of(self.fields())})


def seal_of(fields: Mapping[str, Any]) -> str:
    """sha256 (hex) of a manifest's fields as its JSON has them, without the seal."""
    others = {name: value for name, value in fields.items() if name != "seal"}
    return hashlib.sha256(canonical_json(others).encode()).hexdigest()


def content_version(tables: Mapping[str, str], files: Mapping[str, str]) -> str:
    """The data version: sha256 (hex) over the content hashes of all tables and files, by their names."""
    content = {"tables": dict(tables), "files": dict(files)}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def surroundings() -> dict[str, Any]:
    """The manifest's fields about this process: library versions (without importing them), Python, platform, time."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "libraries": libraries,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "created": datetime.now(UTC),
    }
