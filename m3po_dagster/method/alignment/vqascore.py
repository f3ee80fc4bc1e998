"""VQAScore: the probability that a vision-language model says yes, asked whether the image shows a statement (3.3).

Such a model reads a sentence as a sentence: it knows order, number and negation, which a dual encoder hardly does.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.pretrained import LargePretrainedSettings
from m3po_dagster.method.alignment.statements import Assessment, StatementScorer, StatementSettings
from m3po_dagster.method.generation.encoding import PromptError, render
from m3po_dagster.method.generation.model import LoadedModel, load_model
from m3po_dagster.method.generation.prefill import Counts
from m3po_dagster.method.next_token import can_share, next_token_logps
from m3po_dagster.method.prompt import Message, Prompt

PLACE = "{text}"
CHECK_STATEMENTS = ("There is a circle.", "A red square is on the left of a blue circle.")
TEXT_SHARE = 4
"""A statement may take a quarter of the model's context; the rest is the image's and the question's."""
IN_VAIN = "statement can't be put to the model"
"""It names the model's image placeholder, or leaves, with this image, no room in the model's context."""


class VqaScoreSettings(LargePretrainedSettings, StatementSettings):
    """P(yes) of a vision-language model that is asked whether the image shows a statement."""

    MEASURE: ClassVar[str] = "P(yes)"

    kind: Literal["vqascore"] = Field("vqascore", description="P(yes) of a model asked whether the image shows it")
    name: str = Field("vqascore", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )
    template: str = Field(
        'Does this image show "{text}"? Answer yes or no.',
        description="the question; {text} stands for the statement. The answers that count are yes and no",
    )

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str) -> str:
        if value.count(PLACE) != 1:
            raise ValueError(f"write {PLACE} once, where the statement goes")
        return value

    def build(self, device: str = "cpu") -> StatementScorer:
        """Loads the model. Raises as `load_model`, and ValueError for one without a token for yes or no."""
        return StatementScorer(self, YesNoAsker(self, load_model(self.model_settings(device))))


class YesNoAsker:
    """P(yes) / (P(yes) + P(no)) over every token that spells yes or no; `counts` is what the model was asked to do."""

    def __init__(self, settings: VqaScoreSettings, loaded: LoadedModel) -> None:
        self.settings = settings
        self.loaded = loaded
        self.counts = Counts()
        self.yes, self.no = (self._spelled(word) for word in ("yes", "no"))
        self.together = self._can_share()

    def fits(self, text: str) -> bool:
        """Whether the text leaves most of the context to the image and the question."""
        context = self.loaded.context
        return context is None or len(self.loaded.tokenizer(text, verbose=False)["input_ids"]) <= context // TEXT_SHARE

    def knows(self, word: str) -> bool:
        """Whether the tokenizer has tokens for the word."""
        unknown = self.loaded.tokenizer.unk_token_id
        return unknown not in self.loaded.tokenizer(word, add_special_tokens=False)["input_ids"]

    def assess(self, asked: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Assessment | None]:
        """P(yes), in [0, 1]; None for an image that can't be read."""
        return [self._ask(prompt, texts) for prompt, texts in asked]

    def _ask(self, prompt: Prompt, texts: Sequence[str]) -> Assessment | None:
        try:
            prompt.open_image()
        except OSError:
            return None
        questions = [self._question(prompt, text) for text in texts]
        answers = next_token_logps(self.loaded, questions, [*self.yes, *self.no], self.together, counts=self.counts)
        return {
            text: IN_VAIN if isinstance(answer, PromptError) else self._share(answer)
            for text, answer in zip(texts, answers, strict=True)
        }

    def _question(self, prompt: Prompt, text: str) -> Prompt:
        return Prompt(
            prompt.prompt_id, prompt.image_path, (Message("user", self.settings.template.replace(PLACE, text)),)
        )

    def _share(self, logps: tuple[float, ...]) -> float:
        yes, no = _log_sum(logps[: len(self.yes)]), _log_sum(logps[len(self.yes) :])
        return 1 / (1 + math.exp(min(no - yes, 700.0)))

    def _spelled(self, word: str) -> list[int]:
        """The tokens that are `word`, in any case, with or without a space before it."""
        tokenizer = self.loaded.tokenizer
        spellings = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        found = [token for token, spelling in enumerate(spellings) if spelling.strip().casefold() == word]
        if not found:
            raise ValueError(
                f"scorer '{self.settings.name}': the tokenizer of {self.settings.model!r} has no token for {word!r}, "
                "whose probability is wanted"
            )
        return found

    def _can_share(self) -> bool:
        from PIL import Image

        drawn = Prompt("check", Path("drawn"), (Message("user", ""),))
        texts = [render(self.loaded, self._question(drawn, text)) for text in CHECK_STATEMENTS]
        return can_share(self.loaded, texts, Image.new("RGB", (64, 64), "red"))


def _log_sum(logps: Sequence[float]) -> float:
    most = max(logps)
    return most + math.log(math.fsum(math.exp(logp - most) for logp in logps))
