"""The base of every settings class of a study: typed, frozen, unknown keys refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

# Dagster forbids some characters in partition keys; the store makes folders of them.
PartitionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class Settings(BaseModel):
    """One section of a study file. Every field carries a description; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
