"""Tags on runs and materialisations: what a run is about, and what the automation has to know of it."""

from collections.abc import Sequence

STUDY = "m3po/study"
STUDY_VERSION = "m3po/study_version"
"""Changes with anything in the study file."""
FINGERPRINT = "m3po/fingerprint"
"""How the fingerprint of a result begins, to search by; tags are short, so the whole one is metadata. A run that makes
several assets has a tag for each, `m3po/fingerprint.candidates` and so on."""
DIGITS = 32
"""Digits of a fingerprint in a tag."""
BLOCKED = "m3po/blocked"
"""On a result that nothing may build on: the blocking check that it failed."""
WANTED = "m3po/wanted"
"""On a run that was started for one result: how that result's fingerprint begins."""
OBSOLETE = "m3po/obsolete"
"""On a run that had nothing left to do, or was stopped, because what it was started for had changed."""
INTERRUPTED = "m3po/interrupted"
"""On a run whose process was ended from outside: no fault of what it was doing."""
STARTED_BY = "m3po/started_by"
"""On a run that a named job started: the job's run."""
STARTED_BY_STEP = "m3po/started_by_step"
"""Beside it: which step of the job's run."""
MACHINE = "m3po/machine"
"""Where the id of the run's process means something."""


def of_dimension(dimension: str) -> str:
    """The tag with a run's shard or recipe."""
    return f"m3po/{dimension}"


def of_partition(dimensions: Sequence[str], partition: str) -> dict[str, str]:
    """The tags with the shard and the recipe that a partition key names."""
    return {of_dimension(dimension): key for dimension, key in zip(dimensions, partition.split("|"), strict=False)}
