"""Gaussian noise that belongs to a candidate: what a noisier judge would say of it, the same wherever it stands."""

import hashlib
from statistics import NormalDist

import numpy as np
import pyarrow as pa

_ROWS = 1 << 16
_STANDARD = NormalDist()


def gaussian_noise(candidate_ids: pa.ChunkedArray, seed: int) -> np.ndarray:
    """(rows,) standard normal numbers, each from the first 52 bits of sha256(seed:candidate_id) alone.

    The bits are a number strictly between 0 and 1, and the noise is the quantile of the normal distribution there.
    """
    noise = np.empty(len(candidate_ids))
    for start in range(0, len(noise), _ROWS):
        some = candidate_ids.slice(start, _ROWS).to_pylist()
        noise[start : start + len(some)] = [_STANDARD.inv_cdf(_uniform(seed, name)) for name in some]
    return noise


def _uniform(seed: int, name: str) -> float:
    bits = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 12
    return (bits + 0.5) / 2**52
