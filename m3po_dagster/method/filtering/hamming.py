"""Which of many 64-bit hashes are within a few bits of each other, exactly, without comparing all pairs.

Two hashes that differ in at most `distance` bits, cut into bands of equal width, differ in at most one bit of some band
when there are more than distance / 2 bands. So a hash is compared only with those that have one of its bands but for
one bit: of a million random hashes, with a thousandth of them.
"""

import itertools
from collections.abc import Iterator

import numpy as np

BITS = 64
_LEAST_BANDS = 4
_BLOCK = 512
"""Hashes that are compared all with all: below this, looking up bands costs more."""
_ROWS, _COLUMNS = 64, 1024
"""Pairs of hashes that are compared at once, so that they stay in the processor's cache."""
_PAIRS = 1 << 20
"""Pairs that are listed at once: what bounds memory."""
_CROWDED = 4096
"""Pairs of two buckets from which they are compared as a matrix, not as a list."""


def first_within(queries: np.ndarray, members: np.ndarray, distance: int) -> np.ndarray:
    """For each query, the smallest index of a member within `distance` bits, or -1. uint64 in, int64 out.

    Memory is bounded, whatever the hashes. Time is that of comparing pairs that share a band of 16 bits but for one bit
    (of fewer bits from a distance of 8 on).
    """
    first = np.full(len(queries), len(members), dtype=np.int64)
    if len(queries) * len(members) <= _BLOCK * _BLOCK:
        _compare_all(queries, np.arange(len(queries)), members, np.arange(len(members)), distance, first)
    else:
        for shift, width in _bands(distance):
            _compare_band(queries, members, shift, width, distance, first)
    first[first == len(members)] = -1
    return first


def earlier_within(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Goes through the hashes in order and keeps each that is not within `distance` bits of a kept one.

    Gives for each hash the index of the first kept one within `distance` bits, or -1 for the kept ones themselves.
    uint64 in, int64 out. A hash depends on earlier ones only: hashes added at the end change nothing.
    """
    first = np.full(len(hashes), -1, dtype=np.int64)
    _settle(hashes, np.arange(len(hashes)), distance, first)
    return first


def _settle(hashes: np.ndarray, index: np.ndarray, distance: int, first: np.ndarray) -> None:
    """Settles the hashes at `index`, of which none is within `distance` of a kept one before them all."""
    if len(index) <= _BLOCK:
        _settle_block(hashes[index], index, distance, first)
        return
    left, right = np.array_split(index, 2)
    _settle(hashes, left, distance, first)
    kept = left[first[left] < 0]
    found = first_within(hashes[right], hashes[kept], distance)
    near = found >= 0
    first[right[near]] = kept[found[near]]
    _settle(hashes, right[~near], distance, first)


def _settle_block(hashes: np.ndarray, index: np.ndarray, distance: int, first: np.ndarray) -> None:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= distance
    open_ = np.ones(len(hashes), dtype=bool)
    for position in np.flatnonzero(near.sum(axis=1) > 1):
        if open_[position]:
            settled = near[position] & open_
            settled[: position + 1] = False
            first[index[settled]] = index[position]
            open_ &= ~settled


def _bands(distance: int) -> Iterator[tuple[int, int]]:
    """Shift and width of each band."""
    bands = max(_LEAST_BANDS, distance // 2 + 1)
    edges = np.linspace(0, BITS, bands + 1).astype(int).tolist()
    for low, high in itertools.pairwise(edges):
        yield low, high - low


def _compare_band(queries: np.ndarray, members: np.ndarray, shift: int, width: int, distance: int, first: np.ndarray):
    """Compares each query with the members whose band is its own, or one bit away."""
    q_order, q_start, q_count = _buckets(queries, shift, width)
    m_order, m_start, m_count = _buckets(members, shift, width)
    queries, members = queries[q_order], members[m_order]
    keys = np.flatnonzero(q_count)
    for flip in [0, *(1 << bit for bit in range(width))]:
        mine, theirs = keys, keys ^ flip
        pairs = q_count[mine] * m_count[theirs]
        for key in np.flatnonzero(pairs >= _CROWDED):
            q, m = mine[key], theirs[key]
            q_part = slice(q_start[q], q_start[q] + q_count[q])
            m_part = slice(m_start[m], m_start[m] + m_count[m])
            _compare_all(queries[q_part], q_order[q_part], members[m_part], m_order[m_part], distance, first)
        sparse = (pairs > 0) & (pairs < _CROWDED)
        mine, theirs = mine[sparse], theirs[sparse]
        for part in _parts(pairs[sparse]):
            q = _ranges(q_start[mine[part]], q_count[mine[part]])
            partners = np.repeat(theirs[part], q_count[mine[part]])
            m = _ranges(m_start[partners], m_count[partners])
            q = np.repeat(q, m_count[partners])
            hit = np.flatnonzero(np.bitwise_count(queries[q] ^ members[m]) <= distance)
            np.minimum.at(first, q_order[q[hit]], m_order[m[hit]])


def _compare_all(
    queries: np.ndarray,
    q_index: np.ndarray,
    members: np.ndarray,
    m_index: np.ndarray,
    distance: int,
    first: np.ndarray,
) -> None:
    for row in range(0, len(queries), _ROWS):
        for column in range(0, len(members), _COLUMNS):
            differ = queries[row : row + _ROWS, None] ^ members[None, column : column + _COLUMNS]
            near = np.bitwise_count(differ) <= distance
            if near.any():
                q, m = np.nonzero(near)
                np.minimum.at(first, q_index[row + q], m_index[column + m])


def _buckets(hashes: np.ndarray, shift: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order that puts equal bands together; for each value of the band, where its hashes start and how many."""
    keys = ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.uint16)
    count = np.bincount(keys, minlength=1 << width)
    return np.argsort(keys, kind="stable"), np.cumsum(count) - count, count


def _parts(sizes: np.ndarray) -> Iterator[slice]:
    """Slices of `sizes` that sum up to about _PAIRS each."""
    edges = np.unique(np.searchsorted(np.cumsum(sizes), np.arange(0, sizes.sum() + _PAIRS, _PAIRS)))
    for start, stop in zip(edges, [*edges[1:], len(sizes)], strict=True):
        if start < stop:
            yield slice(start, stop)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each range, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
