"""The base of every settings class of a study: typed, frozen, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of a study file. Every field carries a description; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
