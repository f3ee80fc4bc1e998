"""One reply of a served judge as it is kept, and sums of what replies took.

A turn is one line of JSON. What a line is found and summed by stands before the reply, in a fixed order, so that
indexing never reads a reply.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Literal

_KEY = re.compile(r"[0-9a-f]{64}")
_REPLY = b',"reply":'
_FEWEST = len('{"key":""') + 64


@dataclass(frozen=True)
class Spend:
    """Answered requests and what they took. Cached tokens are part of the prompt's; `cost` is in the prices' currency.

    What a server does not report, or a study gives no price for, counts as 0.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Spend") -> "Spend":
        return Spend(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Turn:
    """One reply as it is kept. Holds no header, so no secret.

    Raises ValueError for what the ledger could not give back as it was.
    """

    key: str
    """sha256 (hex) of all that was asked."""
    turn: int
    """0 the first reply to this key, 1 the next: a repair's, or a re-run's."""
    purpose: Literal["first", "repair"]
    scorer: str
    model: str
    prompt_id: str
    image_sha256: str
    study: str
    run: str
    at: str
    """When it came, UTC, ISO 8601."""
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    """Tokens as the reply's `usage` says; None where it does not."""
    cost: float | None
    """In the currency of the study's prices; None without prices."""
    reply: str
    """The raw body of the reply."""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"a ledger key is a sha256 in 64 lower-case hex digits, got {self.key!r}")
        counted = (self.turn, self.prompt_tokens or 0, self.cached_tokens or 0, self.completion_tokens or 0)
        if min(counted) < 0 or not 0 <= (self.cost or 0) < math.inf:
            raise ValueError(f"turn, tokens and cost are finite and not negative, got {(*counted, self.cost)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not _is_unicode(value):
                raise ValueError(f"{field.name} of a turn is no Unicode text: decode it with errors='replace'")

    @property
    def spend(self) -> Spend:
        """What this reply took."""
        tokens = (self.prompt_tokens or 0, self.cached_tokens or 0, self.completion_tokens or 0)
        return Spend(1, *tokens, self.cost or 0.0)

    def to_line(self) -> bytes:
        """The turn as a line of JSON with its line break."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Turn":
        """Raises ValueError for a line that is no turn."""
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"no turn: {error}") from error


def key_and_head(line: bytes) -> tuple[bytes, dict]:
    """The first 16 bytes of a line's key, and its fields but the reply. Raises ValueError for what is no whole turn."""
    # Inside a JSON string a quote is escaped, so these bytes can't be part of a value.
    end = line.find(_REPLY)
    if end < _FEWEST or not line.endswith(b'"}'):
        raise ValueError("no turn")
    head = json.loads(line[:end] + b"}")
    return bytes.fromhex(head["key"])[:16], head


def short(key: str) -> bytes:
    """A key as the index holds it: 16 bytes tell keys apart, and a full comparison follows."""
    return bytes.fromhex(key)[:16]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
