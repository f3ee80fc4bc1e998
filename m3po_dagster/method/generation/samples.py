"""What any engine gives for a prompt, and the seed that it draws it from (paper, section 3.2)."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sample:
    """One answer; log-probs in nats at temperature 1 over the whole vocabulary, end of sequence included.

    `has_eos` is False for an answer that ended by itself where the server kept the end of sequence to itself: neither
    its id nor its log-prob is there, and a later scoring of the ids leaves it out too.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    token_logps: tuple[float, ...]
    has_eos: bool = True

    @property
    def n_tokens(self) -> int:
        """Number of tokens, end of sequence included."""
        return len(self.token_ids)

    @property
    def sum_logp(self) -> float:
        """log P(R | I, Q): the tokens' log-probs together."""
        return math.fsum(self.token_logps)

    @property
    def eos_logp(self) -> float | None:
        """The end of sequence's share of it; None when the answer was cut, or the end is not known."""
        return self.token_logps[-1] if self.finish_reason == "stop" and self.has_eos else None


@dataclass(frozen=True)
class Answer:
    """One greedy answer of a server; `token_ids` is None where it gives none. A `Sample` says as much and more."""

    text: str
    n_tokens: int
    finish_reason: Literal["stop", "length"]
    token_ids: tuple[int, ...] | None


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
