"""The ways from a prompt to samples and scores, from the fastest to the one that is right for any model."""

from dataclasses import dataclass
from typing import Literal

SamplingPath = Literal["shared-prefix", "expanded-cache", "generate"]
"""How N rows are decoded.

shared-prefix: over one copy of the prompt's keys and values. expanded-cache: over a copy a row of whatever the model
keeps of the prompt. generate: by transformers' own loop, the prompt read once a row.
"""

ScoringPath = Literal["packed", "expanded-cache", "full-forward"]
"""How given answers are scored.

packed: as one row over the prompt's keys and values. expanded-cache: a row each over copies of what the model keeps of
the prompt. full-forward: prompt and answer together, one by one.
"""


@dataclass(frozen=True)
class Paths:
    """The paths that a model takes, why not faster ones, and how many forwards it took to find out."""

    sampling: SamplingPath
    scoring: ScoringPath
    reasons: tuple[str, ...]
    check_forwards: int
