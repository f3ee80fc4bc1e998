"""The settings of the filters, one class a filter; `false` in its place switches a filter off."""

from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from m3po_dagster.method.filtering.languages import LANGUAGES, near_codes
from m3po_dagster.method.known_images.known import NAMES, known_benchmarks
from m3po_dagster.settings import Settings


def _on_or_off(value: object) -> str:
    return "off" if value is False else "settings"


SettingsOfFilter = TypeVar("SettingsOfFilter", bound=Settings)
Switchable = Annotated[
    Annotated[SettingsOfFilter, Tag("settings")] | Annotated[Literal[False], Tag("off")], Discriminator(_on_or_off)
]
"""A filter's settings, or false; an error speaks of the settings, unless false was written."""
Share = Annotated[float, Field(gt=0, le=1)]


class ImageSizeFilter(Settings):
    """Drops images that are too small, or too large, for the model to see anything in."""

    min_side: int = Field(112, ge=1, le=100_000, description="smallest width and height in pixels, upright")
    max_side: int | None = Field(
        None, ge=1, le=100_000, description="largest width and height in pixels, upright; no limit without it"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "ImageSizeFilter":
        if self.max_side is not None and self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is above max_side {self.max_side}")
        return self

    def passes(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Which images of these sizes, arrays of one length, are neither too small nor too large."""
        large = np.iinfo(np.int64).max if self.max_side is None else self.max_side
        return (np.minimum(width, height) >= self.min_side) & (np.maximum(width, height) <= large)


class ImageAspectFilter(Settings):
    """Drops elongated images, of which a model that takes squares sees a strip or a distortion."""

    max_aspect: float = Field(
        3.0, ge=1, le=1000, description="largest ratio of the longer to the shorter side of the image"
    )

    def passes(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Which images of these sizes, arrays of one length, are not too elongated."""
        return np.maximum(width, height) <= self.max_aspect * np.minimum(width, height)


class InstructionLengthFilter(Settings):
    """Drops questions that are too short to ask anything, or long enough to be a document."""

    min_characters: int = Field(4, ge=1, description="fewest characters of the question, spaces at its ends apart")
    max_characters: int = Field(2048, ge=1, description="most characters of the question, spaces at its ends apart")

    @model_validator(mode="after")
    def _in_order(self) -> "InstructionLengthFilter":
        if self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} is above max_characters {self.max_characters}")
        return self


class LanguageFilter(Settings):
    """Drops questions that are clearly in another language; where the question leaves doubt, it is kept."""

    languages: tuple[str, ...] = Field(
        ("en",), min_length=1, description="accepted languages, by ISO 639 code as fastText's lid.176 model has them"
    )
    min_probability: Share = Field(
        0.02, description="smallest probability of the accepted languages together, as the model sees it"
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for code in languages:
            if code not in LANGUAGES:
                close = near_codes(code)
                hint = f"did you mean {', '.join(close)}?" if close else f"{len(LANGUAGES)} are, en and zh among them"
                raise ValueError(f"{code!r} is no code of a language that can be told apart; {hint}")
        return languages


class RepetitionFilter(Settings):
    """Drops questions that mostly repeat themselves: loops of a generator, keys held down."""

    max_share: Share = Field(
        0.5, description="largest share of the question's characters, spaces apart, that may be repetition"
    )
    words: int = Field(4, ge=2, le=20, description="number of words in a row that are a repetition when met again")
    runs: int = Field(
        10, ge=3, le=1000, description="times that 1 to 8 characters must follow themselves at once to be a repetition"
    )


class NearDuplicateFilter(Settings):
    """Drops an image, with all its prompts, that looks like an earlier one of the dataset."""

    distance: int = Field(
        6,
        ge=0,
        le=10,
        description="most bits of 64 in which the perceptual hashes of images that look alike differ",
    )


class ContaminationFilter(Settings):
    """Drops images and question texts of benchmarks, on which the trained model is measured."""

    known: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        NAMES, description="published benchmarks whose images are known by their COCO ids"
    )
    templates: bool = Field(True, description="drop questions in the form of those benchmarks' questions, too")
    images: bool = Field(True, description="drop the images of the study's own benchmarks, too")
    distance: int = Field(
        4,
        ge=0,
        le=10,
        description="most bits of 64 in which the perceptual hashes of an image and of a benchmark's image that look "
        "alike differ",
    )

    @field_validator("known")
    @classmethod
    def _listed(cls, known: tuple[str, ...]) -> tuple[str, ...]:
        known_benchmarks(known)
        return known


class FilterSettings(Settings):
    """Which image-instruction pairs are kept (section 4.1): the filters in their order, each its settings or false."""

    image_size: Switchable[ImageSizeFilter] = Field(ImageSizeFilter(), description="size of the image; false: any")
    image_aspect: Switchable[ImageAspectFilter] = Field(
        ImageAspectFilter(), description="shape of the image; false: any"
    )
    instruction_length: Switchable[InstructionLengthFilter] = Field(
        InstructionLengthFilter(), description="length of the question; false: any"
    )
    language: Switchable[LanguageFilter] = Field(LanguageFilter(), description="language of the question; false: any")
    repetition: Switchable[RepetitionFilter] = Field(
        RepetitionFilter(), description="questions that repeat themselves; false: kept"
    )
    exact_duplicate: bool = Field(
        True,
        description="drop a prompt whose image has the same bytes and whose turns differ only in case, spacing and "
        "compatibility forms from an earlier prompt's; false: kept, unless equal to the letter, for then they are one "
        "prompt",
    )
    near_duplicate: Switchable[NearDuplicateFilter] = Field(
        NearDuplicateFilter(), description="images that look like an earlier one; false: kept"
    )
    contamination: Switchable[ContaminationFilter] = Field(
        ContaminationFilter(), description="images and questions of benchmarks; false: kept"
    )
