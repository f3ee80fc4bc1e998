"""What any engine gives for a prompt, and the seed that it draws it from (paper, section 3.2)."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sample:
    """One answer; log-probs in nats at temperature 1 over the whole vocabulary, end of sequence included."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    token_logps: tuple[float, ...]

    @property
    def sum_logp(self) -> float:
        """log P(R | I, Q): the tokens' log-probs together."""
        return math.fsum(self.token_logps)

    @property
    def eos_logp(self) -> float | None:
        """The end of sequence's share of it; None when the answer was cut."""
        return self.token_logps[-1] if self.finish_reason == "stop" else None


@dataclass(frozen=True)
class Failure:
    """Why a prompt has no answer; the reason names the prompt and its file."""

    reason: str


def prompt_seed(base_seed: int, prompt_id: str, n: int) -> int:
    """A prompt's seed in [0, 2**63): a multiple of `n`, so that an engine may count up from it for at most n samples.

    Depends on nothing but its arguments: neither on the order of the prompts nor on the shard they are in.
    """
    digest = hashlib.sha256(f"{base_seed}\n{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:16], "big") % (2**63 // n) * n
