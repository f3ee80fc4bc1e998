"""Agreement with the dataset's own answer as a scorer: ROUGE-L, which needs no model (section 3.3).

It never looks at the image. It says how far an answer's words, in their order, are those of the reference, and takes an
equally right answer in other words for a wrong one.
"""

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from m3po_dagster.method.alignment.calibration import Calibration, Identity
from m3po_dagster.method.alignment.scorer import Batch, Score, ScorerSettings


class ReferenceSettings(ScorerSettings):
    """ROUGE-L of an answer against the dataset's reference answer. It does not look at the image."""

    kind: Literal["reference"] = Field("reference", description="ROUGE-L against the dataset's reference answer")
    name: str = Field("reference", pattern=r"^[a-z][a-z0-9_]*$", description="column of the MAS table")
    calibration: Calibration = Field(
        Identity(), description="map of the raw value to [0, 1]; the raw value already lies there"
    )

    @property
    def looks_at_image(self) -> bool:
        """Never: another image changes nothing."""
        return False

    @property
    def sub_scores(self) -> dict[str, str]:
        """NAME_precision and NAME_recall."""
        return {
            f"{self.name}_precision": "share of the answer's words that are the reference's, in its order",
            f"{self.name}_recall": "share of the reference's words that are the answer's, in its order",
        }

    def build(self, device: str = "cpu") -> "ReferenceScorer":
        """The scorer; there is nothing to load."""
        return ReferenceScorer(self)


class ReferenceScorer:
    """Raw value: ROUGE-L's F1, in [0, 1], from the longest common subsequence of words."""

    def __init__(self, settings: ReferenceSettings) -> None:
        self.name = settings.name
        self.sub_scores = tuple(settings.sub_scores)

    def score(self, batch: Batch) -> list[list[Score]]:
        """Unscored: an answer without a word, a prompt without a reference answer (or none with a word in it)."""
        rows = []
        for prompt, answers in batch:
            reference = words(prompt.reference or "")
            rows.append([self._score(words(answer), reference) for answer in answers])
        return rows

    def _score(self, answer: list[str], reference: list[str]) -> Score:
        if not reference:
            return Score.unscored("no reference")
        if not answer:
            return Score.unscored("answer has no words")
        common = longest_common_subsequence(answer, reference)
        precision, recall = common / len(answer), common / len(reference)
        # The harmonic mean of the two.
        value = 2 * common / (len(answer) + len(reference))
        return Score(value, sub_scores=dict(zip(self.sub_scores, (precision, recall), strict=True)))


def words(text: str) -> list[str]:
    """Runs of letters and digits, of any script, case aside."""
    return re.findall(r"[^\W_]+", text.casefold())


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest sequence of words that stand in both in this order, not always side by side.

    The table of the textbook's recurrence, a row at a time, as the bits of one integer: a bit is 0 where the row's
    value steps up, and an addition moves the steps as one more word of `one` does (Hyyrö 2004, Bit-parallel LCS-length
    computation revisited).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << i
    steps = whole = (1 << len(other)) - 1
    for word in one:
        matches = steps & places.get(word, 0)
        steps = (steps + matches | steps - matches) & whole
    return len(other) - steps.bit_count()
