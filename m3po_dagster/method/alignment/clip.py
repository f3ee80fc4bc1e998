"""CLIP as a scorer: cosine between an answer's statements and views of the image (paper, section 3.3).

A CLIP text tower reads 77 tokens, weighs mostly the first twenty, and knows neither the instruction nor negation. So an
answer is split into sentences, a very short answer is joined to its question, a sentence too long for the tower is
windowed (never cut in silence), and the value mixes the mean over statements with a low quantile: one wrong statement
among many right ones must cost something.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from m3po_dagster.method.alignment.clip_encoder import ClipEncoder
from m3po_dagster.method.alignment.scorer import Batch, Score, ScorerSettings
from m3po_dagster.method.alignment.sentences import as_statements, windows
from m3po_dagster.method.prompt import Prompt

if TYPE_CHECKING:
    from PIL import Image


class ClipScorerSettings(ScorerSettings):
    """A tiled CLIP score from any open_clip model."""

    kind: Literal["clip"] = Field("clip", description="cosine of the answer's statements with views of the image")
    name: str = Field("clip", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    pretrained: str | None = Field(
        None,
        description="open_clip's weights tag or a weights file, for a model given by name; a folder has its own",
    )
    tiles: int = Field(
        1, ge=1, le=8, description="1: the whole image; g > 1: also g x g crops, a statement takes its best view"
    )
    quantile: float = Field(0.1, ge=0, le=1, description="which low quantile over statements stands beside their mean")
    low_weight: float = Field(0.5, ge=0, le=1, description="share of that quantile in the value; the rest is the mean")
    short_words: int = Field(
        4,
        ge=0,
        le=50,
        description="a sole sentence of at most this many words is joined to its question; 0: never",
    )

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_mean, NAME_low and NAME_statements."""
        return {
            f"{self.name}_mean": "mean cosine of the answer's statements with the image",
            f"{self.name}_low": f"their {self.quantile:g} quantile: the statements that fit least",
            f"{self.name}_statements": "number of statements seen, windows of long ones included",
        }

    def build(self, device: str = "cpu") -> "ClipScorer":
        """Loads the model on `device`."""
        return ClipScorer(self, device)


class ClipScorer:
    """Cosines; each image view and each distinct statement of a batch goes through its tower once."""

    def __init__(self, settings: ClipScorerSettings, device: str = "cpu") -> None:
        self.settings = settings
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self.encoder = ClipEncoder(settings.model, settings.pretrained, device)

    def score(self, batch: Batch) -> list[list[Score]]:
        """Raw values are cosines in [-1, 1]. Unscored: an answer without a word, an image that can't be read."""
        views = encode_views(self.encoder, [prompt for prompt, _ in batch], self._view)
        statements: dict[str, list[str]] = {}
        for prompt, answers in batch:
            if prompt.image_path in views:
                for statement in (s for answer in answers for s in self._statements(prompt, answer)):
                    if statement not in statements:
                        statements[statement] = windows(statement, self.encoder.fits)
        pieces = {piece: row for row, piece in enumerate(dict.fromkeys(p for ps in statements.values() for p in ps))}
        vectors = self.encoder.encode_texts(list(pieces))
        rows = {statement: [pieces[piece] for piece in ps] for statement, ps in statements.items()}
        return [
            [
                self._score([row for s in self._statements(prompt, answer) for row in rows.get(s, ())], vectors, view)
                for answer in answers
            ]
            for prompt, answers in batch
            for view in [views.get(prompt.image_path)]
        ]

    def _view(self, image: "Image.Image") -> Iterator["Image.Image"]:
        return tile_views(image, self.settings.tiles)

    def _statements(self, prompt: Prompt, answer: str) -> list[str]:
        return as_statements(prompt.question, answer, self.settings.short_words)

    def _score(self, rows: list[int], vectors: np.ndarray, views: np.ndarray | None) -> Score:
        if views is None:
            return Score.unscored("image can't be read")
        if not rows:
            return Score.unscored("answer has no words")
        cosines = (vectors[rows].astype(np.float64) @ views.astype(np.float64).T).max(axis=1)
        mean, low = float(cosines.mean()), float(np.quantile(cosines, self.settings.quantile))
        value = (1 - self.settings.low_weight) * mean + self.settings.low_weight * low
        return Score(value, sub_scores=dict(zip(self.sub_scores, (mean, low, float(len(rows))), strict=True)))


def encode_views(
    encoder: ClipEncoder, prompts: Sequence[Prompt], view: Callable[["Image.Image"], Iterable["Image.Image"]]
) -> dict[Path, np.ndarray]:
    """Image path -> embeddings of its views, (views, embedding size), each image once.

    `view` gives the same number of views for every image. Images that can't be read are left out.
    """
    read: list[Path] = []

    def views() -> Iterator["Image.Image"]:
        for path, prompt in {prompt.image_path: prompt for prompt in prompts}.items():
            try:
                image = prompt.open_image()
            except OSError:
                continue
            read.append(path)
            yield from view(image)

    vectors = encoder.encode_images(views())
    return dict(zip(read, np.split(vectors, len(read)), strict=True)) if read else {}


def tile_views(image: "Image.Image", tiles: int) -> Iterator["Image.Image"]:
    """The whole image, then, for `tiles` > 1, its crops."""
    yield image
    if tiles > 1:
        yield from crops(image, tiles)


def crops(image: "Image.Image", tiles: int) -> Iterator["Image.Image"]:
    """The image cut into tiles x tiles, row by row; together they cover every pixel once."""
    width, height = image.size
    across = [column * width // tiles for column in range(tiles + 1)]
    down = [row * height // tiles for row in range(tiles + 1)]
    for top, bottom in pairwise(down):
        for left, right in pairwise(across):
            yield image.crop((left, top, right, bottom))
