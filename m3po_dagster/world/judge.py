"""The embedded world's judge: a small open_clip model that reads each cell of a scene and checks an answer against it.

The tiled CLIP score of a scene: every cell crop against the captions of the 24 objects and of nothing, as probabilities
with the model's own logit scale. From that reading come the three aspects of section 3.3; MAS is their mean.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.clip_encoder import ClipEncoder
from m3po_dagster.method.alignment.scorer import UNREADABLE_IMAGE, Batch, ModelScorerSettings, Score
from m3po_dagster.method.alignment.views import crops, encode_views
from m3po_dagster.method.prompt import Prompt
from m3po_dagster.world.judge_words import evidence
from m3po_dagster.world.language import claims, kind_of, parse_question
from m3po_dagster.world.scene_reading import SceneReading, statements
from m3po_dagster.world.scenes import THINGS

JUDGE_FOLDER = Path(__file__).parent / "weights" / "judge"
# What a cell is compared with, in the order of SceneReading's columns.
CAPTIONS = (*(f"There is a {thing}." for thing in THINGS), "There is nothing.")


class SceneJudgeSettings(ModelScorerSettings):
    """The judge of the embedded world; it knows the world's questions and nothing else."""

    kind: Literal["scene_judge"] = Field("scene_judge", description="the embedded world's judge")
    name: str = Field("scene_judge", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration | None = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )

    @property
    def sub_scores(self) -> dict[str, str]:
        """The three aspects of section 3.3, each in [0, 1]."""
        return {
            "relevance": "how likely the things that the answer names are in the image, in [0, 1]",
            "accuracy": "how likely the answer is right: soft F1 of a description, in [0, 1]",
            "adherence": "how much of the answer is of the kind asked, and how complete it is, in [0, 1]",
        }

    def build(self, device: str = "cpu") -> "SceneJudge":
        """Loads the model on `device`."""
        return SceneJudge(self, device)


class SceneJudge:
    """Raw value: mean of relevance, accuracy and adherence, each in [0, 1]. An image is encoded once a batch.

    Words: what it sees and which statements that decided.
    """

    def __init__(self, settings: SceneJudgeSettings, device: str = "cpu") -> None:
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)
        self.encoder = ClipEncoder(settings.model, device=device)
        self._captions = self.encoder.encode_texts(CAPTIONS).astype(np.float64)

    def score(self, batch: Batch) -> list[list[Score]]:
        """Unscored: a question of another world, an unreadable image, an answer that is empty or not understood."""
        readings = self.read([prompt for prompt, _ in batch if kind_of(prompt.question)])
        return [
            [self._score(prompt, answer, readings.get(prompt.image_path)) for answer in answers]
            for prompt, answers in batch
        ]

    def read(self, prompts: Sequence[Prompt]) -> dict[Path, SceneReading]:
        """Image path -> what the judge sees there; images that can't be read are left out."""
        readings = {}
        for path, views in encode_views(self.encoder, prompts, lambda image: crops(image, 2)).items():
            logits = self.encoder.logit_scale * views.astype(np.float64) @ self._captions.T
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            readings[path] = SceneReading(weights / weights.sum(axis=1, keepdims=True))
        return readings

    def _score(self, prompt: Prompt, answer: str, reading: SceneReading | None) -> Score:
        if kind_of(prompt.question) is None:
            return Score.unscored("question not about a scene")
        if not answer.strip():
            return Score.unscored("empty answer")
        said = claims(answer)
        if said.verdict is None and not statements(said):
            return Score.unscored("answer not understood")
        if reading is None:
            return Score.unscored(UNREADABLE_IMAGE)
        question = parse_question(prompt.question)
        aspects = reading.aspects(question, said)
        words = evidence(reading, question, said)
        return Score(float(np.mean(list(aspects.values()))), sub_scores=aspects, words=words)
