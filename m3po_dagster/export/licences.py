"""Under which licences the things of a study stand: shown on the cards of what is exported, part of no result."""

from pydantic import Field

from m3po_dagster.settings import Settings

NOT_STATED = "not stated in the study"


class LicenceSettings(Settings):
    """Licences, for the cards of what is exported; nothing is made again when they change.

    A name that the study has not is no error: a study that extends another may have another judge.
    """

    sources: dict[str, str] = Field(default_factory=dict, description="licence of each source of the dataset, by name")
    model: str | None = Field(None, description="licence of the base model")
    judge: dict[str, str] = Field(
        default_factory=dict, description="licence or terms of each scorer of the judge, by name"
    )
    release: str | None = Field(
        None,
        description="licence under which exports are published, as the Hugging Face hub names it (`mit`); without it "
        "their cards state none",
    )
