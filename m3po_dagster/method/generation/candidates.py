"""From N samples to distinct candidates (paper, section 3.2)."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from m3po_dagster.method.generation.samples import Sample


def normalise(text: str) -> str:
    """The text under which two answers count as the same: Unicode NFC, runs of white space one space, ends stripped.

    Case and punctuation stay: they can carry meaning ("US", "us"), and a judge may see the difference.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Candidate:
    """A distinct answer to a prompt: the first of the samples that share its normalised text, and how many do."""

    k: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    multiplicity: int
    token_logps: tuple[float, ...]
    sum_logp: float
    eos_logp: float | None

    def row(self, prompt_id: str, seed: int) -> dict[str, Any]:
        """The candidate as a row of the candidates table."""
        return {
            "candidate_id": f"{prompt_id}:{self.k}",
            "prompt_id": prompt_id,
            "k": self.k,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "n_tokens": len(self.token_ids),
            "finish_reason": self.finish_reason,
            "multiplicity": self.multiplicity,
            "seed": seed,
            "token_logps": list(self.token_logps),
            "sum_logp": self.sum_logp,
            "eos_logp": self.eos_logp,
        }


def distinct(samples: Sequence[Sample]) -> list[Candidate]:
    """The distinct answers in order of first occurrence; their multiplicities sum to the number of samples."""
    same: dict[str, list[int]] = {}
    for k, sample in enumerate(samples):
        same.setdefault(normalise(sample.text), []).append(k)
    return [
        Candidate(
            k=ks[0],
            text=samples[ks[0]].text,
            token_ids=samples[ks[0]].token_ids,
            finish_reason=samples[ks[0]].finish_reason,
            multiplicity=len(ks),
            token_logps=samples[ks[0]].token_logps,
            sum_logp=samples[ks[0]].sum_logp,
            eos_logp=samples[ks[0]].eos_logp,
        )
        for ks in same.values()
    ]
