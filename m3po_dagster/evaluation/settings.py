"""The benchmarks section of a study: one settings class a kind of benchmark (paper, section 4.1).

Every path may be s3://bucket/...
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from m3po_dagster.method.judging import ServedJudgeSettings
from m3po_dagster.s3_files.path import DataPath
from m3po_dagster.settings import Settings

Split = Literal["random", "popular", "adversarial"]


class PopeSettings(Settings):
    """POPE: "Is there a dog in the image?", with absent objects drawn in three ways."""

    kind: Literal["pope"] = Field("pope", description="POPE, yes/no questions about objects")
    labels: dict[Split, DataPath] = Field(
        min_length=1,
        description="label file of each split (random, popular, adversarial), JSON lines as POPE publishes them",
    )
    image_root: DataPath = Field(description="folder with the images that the label files name")


class MmeSettings(Settings):
    """MME or a set of its form: two yes/no questions an image, by category."""

    kind: Literal["mme"] = Field("mme", description="MME, two yes/no questions an image")
    root: DataPath = Field(
        description="folder with one folder a category, in either of the layouts MME is published in"
    )


class ChairSettings(Settings):
    """CHAIR: which objects a description names, and which of them are not in the image."""

    kind: Literal["chair"] = Field("chair", description="CHAIR, hallucinated objects in descriptions")
    path: DataPath = Field(
        description='JSON lines {"question_id": id, "image": path, "text": instruction, "objects": [name, ...]}; '
        'a line {"synonyms": {name: [spelling, ...]}} adds other spellings. With `instances`: no objects, no synonyms'
    )
    image_root: DataPath = Field(description="folder that the image paths are relative to")
    instances: DataPath | None = Field(
        None, description="COCO's instances_*.json: the objects of the images come from there; images go by their name"
    )
    captions: DataPath | None = Field(
        None, description="COCO's captions_*.json: what people named there is in the image too, as in published CHAIR"
    )
    synonyms: DataPath | None = Field(
        None,
        description="the published synonyms.txt: a line an object of COCO, its name and other words for it, parted by "
        "commas; without it only the names of COCO's categories count",
    )

    @model_validator(mode="after")
    def _coco_together(self) -> Self:
        if self.instances is None and (self.captions or self.synonyms):
            raise ValueError("captions and synonyms go with instances, COCO's object annotations")
        return self


class VizwizSettings(Settings):
    """VizWiz-VQA: open questions about pictures that blind people took, with ten reference answers each."""

    kind: Literal["vizwiz"] = Field("vizwiz", description="VizWiz, open questions scored by VQA accuracy")
    annotations: DataPath = Field(
        description="annotation file as VizWiz publishes it (val.json; test.json has no answers)"
    )
    image_root: DataPath = Field(description="folder with the images that the annotations name")
    prompt_suffix: str = Field(
        "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase.",
        description="what follows each question; the default is LLaVA's",
    )


class IftSettings(Settings):
    """IFT: instructions with constraints that rules check."""

    kind: Literal["ift"] = Field("ift", description="instruction following, checked by rules without a judge")
    path: DataPath = Field(
        description='JSON lines {"question_id": id, "image": path, "text": instruction, "constraints": [{"kind": '
        '"max_words", "n": 10}, ...]}'
    )
    image_root: DataPath = Field(description="folder that the image paths are relative to")
    say_constraints: bool = Field(
        True,
        description="add a sentence for each constraint to the instruction; false: the text says all there is to say",
    )


class MiaBenchSettings(Settings):
    """MIA-Bench: instructions of weighted components, scored by a served judge."""

    kind: Literal["mia_bench"] = Field("mia_bench", description="MIA-Bench, layered instructions scored by a judge")
    path: DataPath = Field(description="instruction_benchmark_all.json as MIA-Bench publishes it")
    image_root: DataPath = Field(
        description="folder with the images, downloaded before, each named by the last part of its address"
    )
    judge: ServedJudgeSettings = Field(description="the served model that scores the components")
    skip_missing_images: bool = Field(
        False, description="leave out records whose image is not there, which the notes count; false: an error"
    )


BenchmarkSettings = Annotated[
    PopeSettings | MmeSettings | ChairSettings | VizwizSettings | IftSettings | MiaBenchSettings,
    Field(discriminator="kind"),
]
