"""Cosines of short texts with views of images, from any model with a tower for each (paper, section 3.3)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from pydantic import Field

from m3po_dagster.method.alignment.statements import Assessment, StatementSettings
from m3po_dagster.method.alignment.views import encode_views, tile_views
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    from PIL import Image


class DualEncoderSettings(StatementSettings):
    """How an image is looked at."""

    MEASURE: ClassVar[str] = "cosine"

    tiles: int = Field(
        1, ge=1, le=8, description="1: the whole image; g > 1: also g x g crops, a statement takes its best view"
    )


class DualEncoder(Protocol):
    """Two towers into one space."""

    def encode_images(self, images: "Iterable[Image.Image]") -> np.ndarray:
        """L2-normalised embeddings, shape (number of images, embedding size), float32."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised embeddings, shape (number of texts, embedding size), float32; each text must fit."""
        ...

    def fits(self, text: str) -> bool:
        """Whether the whole text fits the text tower's context."""
        ...

    def knows(self, word: str) -> bool:
        """Whether the tokenizer has tokens for the word."""
        ...


class CosineAssessor:
    """Each view of an image and each distinct text of a batch goes through its tower once."""

    def __init__(self, encoder: DualEncoder, tiles: int) -> None:
        self.encoder = encoder
        self.tiles = tiles
        self.fits = encoder.fits
        self.knows = encoder.knows

    def assess(self, asked: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Assessment | None]:
        """A text's largest cosine with a view of the image, in [-1, 1]; None for an image that can't be read."""
        views = encode_views(self.encoder, [prompt for prompt, _ in asked], self._view)
        texts = dict.fromkeys(text for prompt, some in asked if prompt.image_path in views for text in some)
        vectors = self.encoder.encode_texts(list(texts)).astype(np.float64)
        rows = {text: row for row, text in enumerate(texts)}
        return [
            None
            if prompt.image_path not in views
            else self._cosines(some, vectors[[rows[text] for text in some]], views[prompt.image_path])
            for prompt, some in asked
        ]

    def _view(self, image: "Image.Image") -> Iterator["Image.Image"]:
        return tile_views(image, self.tiles)

    def _cosines(self, texts: Sequence[str], vectors: np.ndarray, views: np.ndarray) -> Assessment:
        if not len(texts):
            return {}
        cosines = (vectors @ views.astype(np.float64).T).max(axis=1)
        return dict(zip(texts, cosines.tolist(), strict=True))
