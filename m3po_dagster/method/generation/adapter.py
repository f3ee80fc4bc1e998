"""A trained adapter as an engine needs to know it to answer with it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """Where its files are and what it is: the recipe and training seed it comes from, and its fingerprint."""

    folder: Path
    recipe: str
    seed: int
    fingerprint: str
