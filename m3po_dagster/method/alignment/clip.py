"""CLIP through open_clip as a scorer: cosine between an answer's statements and views of the image (section 3.3).

A CLIP text tower reads 77 tokens, weighs mostly the first twenty, and knows neither the instruction nor negation.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from m3po_dagster.method.alignment.clip_encoder import ClipEncoder
from m3po_dagster.method.alignment.dual_encoder import CosineAssessor, DualEncoderSettings
from m3po_dagster.method.alignment.statements import StatementScorer


class ClipScorerSettings(DualEncoderSettings):
    """A tiled CLIP score from any open_clip model."""

    kind: Literal["clip"] = Field("clip", description="cosine of the answer's statements with views of the image")
    name: str = Field("clip", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    pretrained: str | None = Field(
        None,
        description="open_clip's weights tag or a weights file, for a model given by name; a folder has its own",
    )

    @property
    def weights_file(self) -> Path | None:
        """`pretrained` where it is a file and no tag of open_clip's."""
        path = Path(self.pretrained) if self.pretrained else None
        return path if path and (path.is_absolute() or path.is_file()) else None

    def identity(self) -> dict:
        """A file of weights counts by its content, which comes on top, not by where it lies."""
        found = super().identity()
        if self.weights_file:
            found["settings"]["pretrained"] = None
        return found

    def build(self, device: str = "cpu") -> StatementScorer:
        """Loads the model on `device`. Raises as `ClipEncoder`."""
        return StatementScorer(self, CosineAssessor(ClipEncoder(self.model, self.pretrained, device), self.tiles))
