"""CLIP, SigLIP, SigLIP 2 and other dual encoders through transformers as a scorer (paper, section 3.3)."""

from typing import Literal

from pydantic import Field

from m3po_dagster.method.alignment.dual_encoder import CosineAssessor, DualEncoderSettings
from m3po_dagster.method.alignment.hf_encoder import HfEncoder
from m3po_dagster.method.alignment.pretrained import PretrainedSettings
from m3po_dagster.method.alignment.statements import StatementScorer


class HfClipScorerSettings(PretrainedSettings, DualEncoderSettings):
    """A tiled CLIP score from any dual encoder of transformers, as CLIP, SigLIP and SigLIP 2 are."""

    kind: Literal["hf_clip"] = Field("hf_clip", description="cosine of the answer's statements with views of the image")
    name: str = Field("hf_clip", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")

    def build(self, device: str = "cpu") -> StatementScorer:
        """Loads the model on `device`. Raises as `HfEncoder`."""
        return StatementScorer(self, CosineAssessor(HfEncoder(self, device), self.tiles))
