"""What an export format is, and which there are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from m3po_dagster.export.records import PairRecord

if TYPE_CHECKING:
    from datasets import Features

ImageMode = Literal["embed", "copy", "reference"]
IMAGES = "images"
"""Folder of copied images."""


class PairFormat(ABC):
    """One tool's layout of preference pairs with images.

    `image_modes` are the ways in which its rows can hold an image, the default first. `undoes_turns` says that what
    reads the rows applies an image's EXIF orientation. `files` matches the data files below the export's folder, and
    `suffix` ends their names.
    """

    name: ClassVar[str]
    image_modes: ClassVar[tuple[ImageMode, ...]]
    undoes_turns: ClassVar[bool]
    folder: ClassVar[str] = "data"
    suffix: ClassVar[str]

    @property
    def files(self) -> str:
        """The data files, as a pattern below the export's folder."""
        return f"{self.folder}/*{self.suffix}".lstrip("/")

    def why_not(self, record: PairRecord) -> str | None:
        """Why the layout can't hold a pair; None when it can."""
        return None

    def features(self) -> "Features | None":
        """Columns and types of a Parquet layout; None for JSON lines."""
        return None

    @abstractmethod
    def row(self, record: PairRecord, image: Mapping[str, Any] | str) -> dict[str, Any]:
        """A pair as the tool reads it; `image` is {bytes, path} where rows embed images, else a path."""

    def beside(self, folder: Path, name: str) -> None:  # noqa: B027  (most layouts need nothing)
        """Writes what the tool wants beside the data; `name` is the data set's."""

    @abstractmethod
    def how_to(self, name: str) -> str:
        """How to use the export, in Markdown, for its card."""


def tag_in(record: PairRecord, tags: tuple[str, ...]) -> str | None:
    """Why a pair can't go where texts hold image tags: one of its texts holds such a tag as plain text."""
    found = [tag for tag in tags if any(tag in text for text in record.texts)]
    return f"its text holds {found[0]}, which the tool would take for a placeholder" if found else None


def alternates(record: PairRecord) -> bool:
    """Whether, after system turns in front, user and assistant take turns, a user's turn last."""
    roles = [message.role for message in record.messages]
    if roles[0] == "system":
        roles = roles[1:]
    return roles[::2] == ["user"] * (len(roles) // 2 + 1) and roles[1::2] == ["assistant"] * (len(roles) // 2)
