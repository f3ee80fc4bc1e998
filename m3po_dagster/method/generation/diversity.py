"""How different a prompt's samples are: candidates that say the same leave nothing to prefer (paper, section 3.2).

Similarity of two answers is the Jaccard index of their sets of character trigrams: the share of the trigrams of either
that both have. It needs no tokenizer and no word boundaries, so it means the same for every engine and language. Its
mean runs over all pairs of a prompt's samples; samples of one text are alike (1), however often it was drawn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE = 3
_BITS = 21  # a code point has 21; three of them fit an int64


@dataclass(frozen=True)
class Diversity:
    """Of the prompts that have samples. Shares in [0, 1], None where there is nothing to divide."""

    prompts: int
    samples: int
    distinct: int
    truncated: int
    mean_similarity: float | None  # mean over prompts with at least two samples

    @property
    def distinct_share(self) -> float | None:
        """Distinct answers to samples; 1 when no two samples of a prompt say the same."""
        return self.distinct / self.samples if self.samples else None

    @property
    def truncated_share(self) -> float | None:
        """Samples that were cut at the token limit."""
        return self.truncated / self.samples if self.samples else None

    @property
    def distinct_a_prompt(self) -> float | None:
        """Distinct answers a prompt."""
        return self.distinct / self.prompts if self.prompts else None


def measure(answers: Iterable[tuple[Sequence[str], Sequence[int], Sequence[bool]]]) -> Diversity:
    """Diversity of prompts, each given as its distinct texts, how many samples have each, and which were cut."""
    prompts = samples = distinct = truncated = 0
    similarities = []
    for texts, multiplicities, cut in answers:
        weights = np.asarray(multiplicities, dtype=np.float64)
        prompts += 1
        samples += int(weights.sum())
        distinct += len(texts)
        truncated += int(weights[np.asarray(cut, dtype=bool)].sum())
        if weights.sum() > 1:
            similarities.append(mean_similarity(texts, weights))
    return Diversity(prompts, samples, distinct, truncated, float(np.mean(similarities)) if similarities else None)


def mean_similarity(texts: Sequence[str], weights: np.ndarray) -> float:
    """Mean similarity over the pairs of at least two samples: distinct texts, each drawn `weights` (T,) times."""
    alike = jaccard(texts)
    total = weights.sum()
    # All ordered pairs, less each sample with itself, whose similarity is 1.
    return float((weights @ alike @ weights - total) / (total * (total - 1)))


def jaccard(texts: Sequence[str]) -> np.ndarray:
    """(T, T) Jaccard indices of the texts' trigram sets, 1 on the diagonal; ends of a text count as characters."""
    codes = [np.frombuffer(f"\x02{text}\x03".encode("utf-32-le", "surrogatepass"), dtype=np.uint32) for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(code) for code in codes])
    flat = np.concatenate(codes).astype(np.int64)
    trigrams = (flat[:-2] << 2 * _BITS) | (flat[1:-1] << _BITS) | flat[2:]
    inside = owner[:-2] == owner[2:]
    known, column = np.unique(trigrams[inside], return_inverse=True)
    has = np.zeros((len(texts), len(known)), dtype=np.float32)
    has[owner[:-2][inside], column] = 1
    both = (has @ has.T).astype(np.float64)
    sizes = both.diagonal()
    either = sizes[:, None] + sizes[None, :] - both
    alike = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    np.fill_diagonal(alike, 1.0)
    return alike
