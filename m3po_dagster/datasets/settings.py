"""Where image-instruction pairs come from (section 4.1): one class a format, and what all sources share."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from m3po_dagster.s3_files.path import DataPath
from m3po_dagster.settings import PartitionName, Settings

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|\w[\w-]*(\.\w[\w-]*)*)(:\d{1,5})?", re.IGNORECASE)


def _host(value: str) -> str:
    """A host as URLs have it, with its port where they name one. Raises ValueError for what none can be equal to."""
    if _HOST.fullmatch(value):
        return value
    try:
        meant = urlsplit(value).netloc.rpartition("@")[2]
    except ValueError:  # brackets that hold no address
        meant = ""
    raise ValueError(
        f"write it as host or host:port, {f'here {meant}' if _HOST.fullmatch(meant) else 'like images.example.org'}"
    )


class SourceSettings(Settings):
    """What every source has, whatever its format."""

    path: DataPath = Field(
        description="the file with the records; for formats of several files, their folder; may be s3://bucket/..."
    )
    image_root: DataPath = Field(
        description="folder that image paths are relative to; images that the dataset's own files hold are unpacked "
        "into it; may be s3://bucket/..."
    )
    take: int | None = Field(
        None, ge=1, description="number of well-formed records to take, a seeded subset; all without it"
    )
    by: Literal["id-hash"] = Field(
        "id-hash",
        description="which records `take` takes: those whose id has the smallest hash, whatever the file's order; a "
        "record without an id goes by its content",
    )
    seed: int = Field(0, ge=0, description="seed of `take`: another seed is another subset")

    @model_validator(mode="after")
    def _takes(self) -> "SourceSettings":
        if self.take is None and (idle := sorted({"by", "seed"} & self.model_fields_set)):
            raise ValueError(f"{' and '.join(idle)} without take: all records are read; add take, or remove it")
        return self


class NamedImages(SourceSettings):
    """What a source has whose records name their images."""

    folders: dict[str, DataPath] = Field(
        default_factory=dict,
        description="folders of image paths that begin so, by prefix: sam/images: /data/sam; the longest prefix counts",
    )
    fetch_from: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        (), description="hosts that images may be fetched from; records with other URLs are dropped"
    )

    @field_validator("folders")
    @classmethod
    def _relative(cls, folders: dict[str, Path]) -> dict[str, Path]:
        for prefix in folders:
            if not prefix.strip("/") or prefix.startswith("/") or ".." in prefix.split("/"):
                raise ValueError(f"{prefix!r} is no prefix of a relative path: write it like sam/images")
        return {prefix.strip("/"): folder for prefix, folder in folders.items()}


class PackedImages(SourceSettings):
    """A source whose own files hold all its images: none is looked for in a folder, or fetched."""

    folders: ClassVar[Mapping[str, Path]] = MappingProxyType({})
    fetch_from: ClassVar[tuple[str, ...]] = ()


class JsonArraySource(NamedImages):
    """LLaVA-Instruct's layout, which ShareGPT4V shares: a JSON array of {id, image, conversations}."""

    format: Literal["llava_instruct", "sharegpt4v"] = Field(
        description="layout of the file; both names read the same one"
    )


class JsonLinesSource(NamedImages):
    """A file written by hand: a JSON object a line with image and question, optionally id and answer."""

    format: Literal["jsonl"] = Field(description="one JSON object a line")


class RlaifVSource(PackedImages):
    """RLAIF-V's Parquet files, images inside; the chosen answer is the reference, the rejected one is left aside."""

    format: Literal["rlaif_v"] = Field(description="RLAIF-V's columns")


class HuggingFaceSource(NamedImages):
    """A Hugging Face dataset on disk, Parquet or Arrow, with an image column."""

    format: Literal["huggingface"] = Field(description="a folder of save_to_disk, or Parquet or Arrow files")
    split: str | None = Field(
        None, min_length=1, description="split to read; the only one there is without it, several are an error"
    )
    image_column: str = Field("image", min_length=1, description="column with the image: an image feature, or a path")
    question_column: str | None = Field(None, description="column with the question, where a row asks one")
    answer_column: str | None = Field(None, description="column with its answer, where there is one")
    conversation_column: str | None = Field(
        None, description="column with a conversation: LLaVA's from and value, or chat messages' role and content"
    )
    id_column: str | None = Field(None, description="column with the record's id; the row's number without it")

    @model_validator(mode="after")
    def _asks(self) -> "HuggingFaceSource":
        if (self.question_column is None) == (self.conversation_column is None):
            raise ValueError("name one of question_column and conversation_column")
        if self.answer_column is not None and self.question_column is None:
            raise ValueError("answer_column goes with question_column: a conversation has its own answers")
        return self


class WebDatasetSource(PackedImages):
    """WebDataset tar shards: a sample is an image and a JSON or text file of one name."""

    format: Literal["webdataset"] = Field(description="tar shards, read in order of their names")


AnySource = Annotated[
    JsonArraySource | JsonLinesSource | RlaifVSource | HuggingFaceSource | WebDatasetSource,
    Field(discriminator="format"),
]

MOST_MEGAPIXELS = 178.0
"""More make a decompression bomb for Pillow, which refuses to open it."""

PACKED = ("rlaif_v", "huggingface", "webdataset")
"""Formats whose files hold the images."""


class DatasetSettings(Settings):
    """Image-instruction pairs: one or more sources, cut into shards by image."""

    sources: dict[PartitionName, AnySource] = Field(
        min_length=1, description="sources by name; the name is kept with every prompt"
    )
    turns: Literal["first", "last", "each"] = Field(
        "first",
        description="which question of a conversation is asked: the first alone, the last, or each, the turns before "
        "it as context (section 4.9)",
    )
    shards: int = Field(8, ge=1, le=99, description="number of shards; all records of an image share a shard")
    max_megapixels: float = Field(
        80.0, gt=0, le=MOST_MEGAPIXELS, description="images that promise more million pixels are never decoded"
    )
    max_record_megabytes: float = Field(
        16.0, gt=0, le=1024, description="a record of more text is refused; memory holds one at a time"
    )
