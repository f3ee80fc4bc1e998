"""What judging will take, before the first request: tokens from lengths, or from what the ledger has measured."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from m3po_dagster.method.alignment.budget import PriceSettings
from m3po_dagster.method.alignment.turn import Spend

BYTES_A_TOKEN = 4
REPLY_TOKENS = 60
"""Tokens of a reply an answer in it: two short sentences of evidence and three grades as JSON."""

# OpenAI's published rule for an image in high detail.
_LONGEST, _SHORTEST, _TILE = 2048, 768, 512
_BASE_TOKENS, _TILE_TOKENS = 85, 170


def image_tokens(width: int, height: int) -> int:
    """Tokens of an image (pixels) by OpenAI's rule for high detail: 85, and 170 a tile of 512 x 512.

    The image is shrunk into 2048 x 2048, then until its shorter side is 768; it is never enlarged. Open models have
    rules of their own, from a fixed few hundred to one token a 28 x 28 pixels. Raises ValueError for no pixels.
    """
    if min(width, height) < 1:
        raise ValueError(f"an image has at least one pixel, got {width} x {height}")
    if (longest := max(width, height)) > _LONGEST:
        width, height = max(1, width * _LONGEST // longest), max(1, height * _LONGEST // longest)
    if (shortest := min(width, height)) > _SHORTEST:
        width, height = width * _SHORTEST // shortest, height * _SHORTEST // shortest
    return _BASE_TOKENS + _TILE_TOKENS * -(-width // _TILE) * -(-height // _TILE)


def text_tokens(text: str) -> int:
    """About how many tokens a text is: one for every four bytes of UTF-8, near enough for English and for Chinese."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def expected(
    body_texts: Iterable[str],
    width: int,
    height: int,
    answers: int,
    prices: PriceSettings | None,
    measured: Spend,
    reply_tokens: int = REPLY_TOKENS,
) -> Spend:
    """What a request with these texts, one image (pixels) and so many answers will take, most likely.

    `measured` is what the ledger knows of the model (`Ledger.measured`): its mean request counts where there is any,
    for no rule of lengths knows a model's tokenizer and its image tiles. `reply_tokens` is what a reply takes an
    answer.
    """
    if measured.requests:
        tokens = (measured.prompt_tokens, measured.cached_tokens, measured.completion_tokens)
        prompt, cached, completion = (round(total / measured.requests) for total in tokens)
    else:
        prompt = sum(map(text_tokens, body_texts)) + image_tokens(width, height)
        cached, completion = 0, answers * reply_tokens
    return Spend(1, prompt, cached, completion, prices.cost(prompt, cached, completion) if prices else 0.0)


def at_most(
    body_texts: Iterable[str],
    width: int,
    height: int,
    max_reply_tokens: int,
    prices: PriceSettings | None,
    measured: Spend,
) -> Spend:
    """What a request will hardly pass, for a purse to reserve: a token a byte, nothing cached, the longest reply.

    An image may take more by a model's own rule than by OpenAI's, so the mean prompt that was measured counts where it
    is larger.
    """
    prompt = sum(len(text.encode("utf-8", "replace")) for text in body_texts) + image_tokens(width, height)
    if measured.requests:
        prompt = max(prompt, -(-measured.prompt_tokens // measured.requests))
    return Spend(1, prompt, 0, max_reply_tokens, prices.cost(prompt, 0, max_reply_tokens) if prices else 0.0)


@dataclass(frozen=True)
class Estimate:
    """What is about to be asked, in sum.

    `known`: requests that the ledger answers. `measured`: how many replies the tokens are a mean of; 0: from lengths.
    """

    spend: Spend
    known: int
    measured: int
    priced: bool

    @classmethod
    def of(cls, requests: Iterable[Spend], known: int, prices: PriceSettings | None, measured: Spend) -> "Estimate":
        """The sum of `expected` requests, made with the same prices and the same measured requests."""
        return cls(sum(requests, Spend()), known, measured.requests, prices is not None)

    def __add__(self, other: "Estimate") -> "Estimate":
        return replace(self, spend=self.spend + other.spend, known=self.known + other.known)

    @property
    def source(self) -> str:
        """Where the tokens come from."""
        return f"the mean of {self.measured:,} replies" if self.measured else "lengths; nothing is measured yet"

    def words(self) -> str:
        """The estimate in a sentence's middle."""
        spend = self.spend
        cost = f", cost {spend.cost:,.4f}" if self.priced else ""
        tokens = f"{spend.prompt_tokens:,} prompt and {spend.completion_tokens:,} reply tokens"
        return f"{spend.requests:,} requests (about {tokens}{cost})"

    def facts(self) -> dict[str, int | float | str]:
        """The estimate for a person, by name; without prices there is no cost."""
        spend = self.spend
        found: dict[str, int | float | str] = {
            "requests": spend.requests,
            "prompt tokens": spend.prompt_tokens,
            "completion tokens": spend.completion_tokens,
        }
        if self.priced:
            found["cost"] = round(spend.cost, 4)
        return {**found, "in the ledger": self.known, "tokens from": self.source}
