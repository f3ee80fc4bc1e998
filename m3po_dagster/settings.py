"""The base of every settings class of a study: typed, frozen, unknown keys refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

# Dagster forbids some characters in partition keys; the store makes folders of them.
PartitionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


def check_name(name: str) -> None:
    """Raises ValueError, saying which letters are allowed, for a name that no part of a study can have."""
    try:
        TypeAdapter(PartitionName).validate_python(name)
    except ValidationError:
        raise ValueError(
            f"{name!r} can't be a name: letters A to Z, a to z, digits, _ . and - are allowed, a letter or a digit "
            "first, 80 at most"
        ) from None


class Settings(BaseModel):
    """One section of a study file. Every field carries a description; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
