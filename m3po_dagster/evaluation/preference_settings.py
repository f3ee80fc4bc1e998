"""The settings of judged preference, and who may not be its judge."""

from collections.abc import Iterable
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import Field, model_validator

from m3po_dagster.method.judging import ScorerSettings, ServedJudgeSettings
from m3po_dagster.s3_files.path import DataPath
from m3po_dagster.settings import Settings


class ServedAssessorSettings(ServedJudgeSettings):
    """A served vision-language model that grades answers and compares them."""

    kind: Literal["served"] = Field("served", description="a served vision-language model grades and compares")
    name: str = Field(
        "assessor",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="what the ledger and messages call the judge",
    )


S = TypeVar("S", bound=ServedAssessorSettings | ScorerSettings)


class PreferenceSettings(Settings, Generic[S]):
    """Judged preference: answers to open instructions, graded 1 to 5 and compared with the base model's.

    `PreferenceSettings[A | B]` says which kinds of judge there are.
    """

    kind: Literal["preference"] = Field(
        "preference", description="answers graded 1 to 5 by a judge, and compared with the base model's in both orders"
    )
    questions: DataPath = Field(
        description='JSON lines {"question_id": id, "image": path, "text": instruction}; "reference", an answer known '
        "to be good, is optional and shown to a served judge"
    )
    image_root: DataPath = Field(description="folder that the image paths are relative to")
    judge: S = Field(
        description="who grades and compares, and did not pick the pairs: a served model, or a scorer that is loaded "
        "here, whose calibrated value then makes grade and comparison"
    )
    margin: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="of a judge that is loaded here: calibrated values that differ by no more than this are a tie",
    )
    allow_same_judge: bool = Field(
        False, description="accept a judge that is one of the study's own scorers; the scores then say so"
    )

    @model_validator(mode="after")
    def _nothing_idle(self) -> "PreferenceSettings[S]":
        if isinstance(self.judge, ServedJudgeSettings):
            if "margin" in self.model_fields_set:
                raise ValueError("margin is for a judge that is loaded here; a served one says itself what is a tie")
        elif "weight" in self.judge.model_fields_set:
            raise ValueError("judge: weight is a share in MAS, and this judge has none: remove it")
        return self

    def same_as(self, scorers: Iterable[ScorerSettings]) -> str | None:
        """The name of the first of a study's scorers that asks the same model as this judge; None where none does.

        A served model is the same under the same name and revision, and under the same name at the same address; one
        that is loaded here, from the same folder or under the same name with the same weights.
        """
        return next((scorer.name for scorer in scorers if _models(scorer) & _models(self.judge)), None)


def _models(judge: ServedJudgeSettings | ScorerSettings) -> set[tuple[str, ...]]:
    """What tells a judge's model from others; two judges that share any of it are one."""
    if judge.served_model is not None:
        model, revision = judge.served_model
        return {("served as", model, revision), ("served at", model, judge.endpoint)}
    if judge.local_model is None:
        return set()
    folder = Path(judge.local_model)
    where = str(folder.resolve()) if folder.is_dir() else judge.local_model
    # open_clip's name says an architecture, and its tag which weights.
    return {("loaded", where, str(getattr(judge, "pretrained", None)))}
