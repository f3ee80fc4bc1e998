"""Counts over a file of any size in bounded memory: kinds with examples, lengths, and distinct values."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappush, heapreplace
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

MOST_KINDS = 1000
OTHERS = "(others)"
EXACT_LENGTHS = 1000
"""Longer ones are counted in steps of a thousandth."""
MOST_HASHES = 1 << 23
"""Hashes held for a count of distinct values, 8 bytes each; beyond, the count is an estimate."""


def hash64(*parts: object) -> int:
    """A 64-bit hash of texts, bytes or numbers, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return int.from_bytes(digest.digest(), "big")


@dataclass
class Kinds(Generic[T]):
    """How often each of some kinds was seen, and the first few examples of it.

    A file of a million different mistakes must not fill memory: from MOST_KINDS on new kinds are counted as OTHERS.
    """

    examples_each: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[T]] = field(default_factory=dict)

    def add(self, kind: str, example: T | None = None) -> None:
        """Counts one of a kind."""
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = OTHERS
        self.counts[kind] += 1
        held = self.examples.setdefault(kind, []) if example is not None and self.examples_each else None
        if held is not None and len(held) < self.examples_each:
            held.append(example)


@dataclass
class Lengths:
    """Lengths of texts: exact up to EXACT_LENGTHS characters, to a thousandth beyond."""

    counts: Counter[int] = field(default_factory=Counter)
    bytes: int = 0

    def add(self, text: str) -> None:
        """Counts a text."""
        length = len(text)
        self.bytes += len(text.encode("utf-8", "surrogatepass"))
        if length > EXACT_LENGTHS:
            step = 10 ** (len(str(length)) - 4)
            length = length // step * step
        self.counts[length] += 1

    @property
    def number(self) -> int:
        """Texts counted."""
        return sum(self.counts.values())

    def quantiles(self, shares: Sequence[float]) -> list[int]:
        """For each share the smallest length that this share of the texts does not pass; empty without a text."""
        if not self.counts:
            return []
        lengths = sorted(self.counts)
        reached = np.cumsum([self.counts[length] for length in lengths])
        places = np.searchsorted(reached, np.asarray(shares) * reached[-1] - 1e-9)
        return [lengths[place] for place in np.minimum(places, len(lengths) - 1)]


class Distinct:
    """How many distinct values were added, and how often each: exact up to MOST_HASHES additions.

    Holds 8 bytes an addition. Beyond the bound only values whose hash lies in a half, a quarter, ... of its range are
    held, and what is counted of them stands for all.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self._most, self._halvings = most, 0
        self._hashes = array("Q")

    def add(self, value: int) -> None:
        """Counts a value by its 64-bit hash."""
        if value >> (64 - self._halvings):
            return
        self._hashes.append(value)
        while len(self._hashes) > self._most and self._halvings < 63:
            self._halvings += 1
            held = np.frombuffer(self._hashes, np.uint64)
            self._hashes = array("Q", held[held >> np.uint64(64 - self._halvings) == 0].tobytes())

    @property
    def exact(self) -> bool:
        """Whether every value is held."""
        return self._halvings == 0

    def times(self) -> Counter[int]:
        """Number of distinct values by how often they were added, scaled up where they are a sample."""
        _, seen = np.unique(np.frombuffer(self._hashes, np.uint64), return_counts=True)
        often, values = np.unique(seen, return_counts=True)
        return Counter({int(n): int(k) << self._halvings for n, k in zip(often, values, strict=True)})

    @property
    def number(self) -> int:
        """Distinct values."""
        return sum(self.times().values())

    @property
    def repeats(self) -> int:
        """Additions of a value that was there before."""
        return sum((often - 1) * values for often, values in self.times().items())


class Sample(Generic[T]):
    """A seeded sample of the distinct keys: the same whatever their order, and whoever reads them."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._heap: list[tuple[int, int, T]] = []
        self._held: dict[int, T] = {}

    def find(self, key: object) -> T | None:
        """The key's item where it is in the sample so far."""
        return self._held.get(hash64(self._seed, key))

    def wants(self, key: object) -> int | None:
        """The key's rank when it belongs to the sample so far, and is not in it; None otherwise."""
        rank = hash64(self._seed, key)
        full = len(self._heap) >= self._size
        if self._size < 1 or rank in self._held or (full and rank > -self._heap[0][0]):
            return None
        return rank

    def put(self, rank: int, item: T) -> T | None:
        """Takes in an item under the rank that `wants` gave; gives the one that had to go."""
        # The rank stands twice: no two items are ever compared.
        entry = (-rank, rank, item)
        self._held[rank] = item
        if len(self._heap) < self._size:
            heappush(self._heap, entry)
            return None
        _, gone, old = heapreplace(self._heap, entry)
        del self._held[gone]
        return old

    def items(self) -> list[T]:
        """The sample, in an order that hangs on keys and seed alone."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[1])]
