"""A prompt (I, Q): one image and the conversation that asks about it (paper, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from m3po_dagster.image_files import FORMATS

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; the image belongs to the first user turn and is not in the text."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """An image and a conversation that ends with the user turn to answer.

    `prompt_id` identifies image *and* conversation: two images with the same question never merge.
    """

    prompt_id: str
    image_path: Path
    messages: tuple[Message, ...]
    reference: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], image_path: Path) -> "Prompt":
        """The prompt of a row of filtered_instructions, its image at `image_path`."""
        turns = tuple(Message(turn["role"], turn["text"]) for turn in row["messages"])
        return cls(row["prompt_id"], image_path, turns, row["reference"])

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        return self.messages[-1].text

    def open_image(self) -> "Image.Image":
        """The image as upright RGB (EXIF orientation applied). Raises OSError when it is no image of FORMATS."""
        return open_upright(self.image_path)

    def chat(self) -> list[dict]:
        """The conversation as a chat template takes it, the image before the text of the first user turn."""
        turns, image_given = [], False
        for message in self.messages:
            content = [{"type": "text", "text": message.text}]
            if message.role == "user" and not image_given:
                content.insert(0, {"type": "image"})
                image_given = True
            turns.append({"role": message.role, "content": content})
        return turns


def open_upright(path: Path) -> "Image.Image":
    """An image file as upright RGB. Raises OSError when it is no image of FORMATS, or promises too many pixels."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        # Pillow names the file that it opened, which may be a copy.
        raise UnidentifiedImageError(f"cannot identify image file {str(path)!r}") from None
    except Image.DecompressionBombError as error:
        # Not one of the errors of files by itself: it would end a step where another bad image is one bad image.
        raise OSError(f"{path}: {error}") from error
