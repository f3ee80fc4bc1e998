import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.filtering.hamming import earlier_within, first_within


def slow_first(queries, members, distance):
    return [next((at for at, m in enumerate(members) if (q ^ m).bit_count() <= distance), -1) for q in queries]


def slow_earlier(hashes, distance):
    kept: list[int] = []
    found = []
    for at, one in enumerate(hashes):
        like = next((before for before in kept if (one ^ hashes[before]).bit_count() <= distance), -1)
        found.append(like)
        if like < 0:
            kept.append(at)
    return found


def random_hashes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def ball(centre, radius):
    """All hashes within `radius` bits of the centre."""
    flips = (sum(1 << bit for bit in bits) for r in range(radius + 1) for bits in itertools.combinations(range(64), r))
    return np.array([centre ^ flip for flip in flips], np.uint64)


BASES = random_hashes(6, seed=1).tolist()
NEAR = st.builds(
    lambda base, flips: base ^ sum(1 << bit for bit in flips),
    st.sampled_from(BASES),
    st.sets(st.integers(0, 63), max_size=12),
)
HASHES = st.lists(st.one_of(NEAR, st.integers(0, 2**64 - 1)), max_size=40)
DISTANCES = st.integers(0, 10)


@pytest.fixture(params=["one block", "bands, listed", "bands, as matrices"])
def way(request, monkeypatch):
    """Sends small inputs down each way that large ones go."""
    module = "m3po_dagster.method.filtering.hamming"
    if request.param != "one block":
        monkeypatch.setattr(f"{module}._BLOCK", 2)
        monkeypatch.setattr(f"{module}._PAIRS", 5)
        monkeypatch.setattr(f"{module}._CROWDED", 1 if request.param == "bands, as matrices" else 1 << 40)
        monkeypatch.setattr(f"{module}._ROWS", 2)
        monkeypatch.setattr(f"{module}._COLUMNS", 3)
    return request.param


@pytest.mark.parametrize("distance", [1, 2, 6])
def test_a_member_within_the_distance_is_found_whichever_bits_differ(way, distance):
    """Every choice of two bits beside fixed ones, so across every border of the bands."""
    base, fixed = BASES[0], [0, 17, 33, 49][: max(0, distance - 2)]
    pairs = itertools.combinations(sorted(set(range(64)) - set(fixed)), min(distance, 2))
    queries = np.array([base ^ sum(1 << bit for bit in (*bits, *fixed)) for bits in pairs], np.uint64)
    members = np.array([~base & (2**64 - 1), base, base], np.uint64)
    assert (first_within(queries, members, distance) == 1).all()
    assert (first_within(queries, members, distance - 1) == -1).all()


def check_against_all_pairs(hashes, members, distance):
    queries = np.array(hashes, np.uint64)
    assert first_within(queries, np.array(members, np.uint64), distance).tolist() == slow_first(
        hashes, members, distance
    )
    assert earlier_within(queries, distance).tolist() == slow_earlier(hashes, distance)


@given(HASHES, HASHES, DISTANCES)
def test_small_inputs_are_as_by_comparing_all_pairs(hashes, members, distance):
    check_against_all_pairs(hashes, members, distance)


@pytest.mark.parametrize("distance", range(11))
def test_every_way_is_as_by_comparing_all_pairs(way, distance):
    rng = np.random.default_rng(distance)
    for _ in range(3):
        flips = np.array(
            [sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 9), False)) for _ in range(60)], np.uint64
        )
        hashes = rng.choice(np.array(BASES, np.uint64), 60) ^ flips
        check_against_all_pairs(hashes.tolist(), hashes[::-2].tolist(), distance)


@given(HASHES, HASHES, DISTANCES)
def test_hashes_added_at_the_end_change_nothing(hashes, more, distance):
    before = earlier_within(np.array(hashes, np.uint64), distance).tolist()
    assert earlier_within(np.array(hashes + more, np.uint64), distance).tolist()[: len(hashes)] == before


def test_many_random_hashes_are_as_by_comparing_all_pairs():
    hashes = random_hashes(6000)
    planted = hashes[:500] ^ np.uint64((1 << 3) | (1 << 20) | (1 << 21) | (1 << 40) | (1 << 55) | (1 << 63))
    found = earlier_within(np.concatenate([hashes, planted]), 6)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= 6
    assert near.sum() == len(hashes)
    assert (found[:6000] == -1).all()
    assert found[6000:].tolist() == list(range(500))


@pytest.mark.timeout(120)
def test_hostile_hashes_are_settled_too():
    """A ball, of which every two are alike, and a hundred thousand hashes that share a band."""
    alike = ball(BASES[0], 3)
    assert len(alike) == 43_745
    assert (earlier_within(alike, 6)[1:] == 0).all()
    crowded = np.unique(random_hashes(60_000) << np.uint64(16)) | np.uint64(0xBEEF)
    found = earlier_within(np.concatenate([crowded, crowded[:10] ^ np.uint64(0b111 << 30)]), 6)
    assert (found >= 0).sum() >= 10
    assert (found[-10:] >= 0).all()


def test_nothing_is_compared_with_nothing():
    none = np.array([], np.uint64)
    assert earlier_within(none, 6).tolist() == []
    assert first_within(none, random_hashes(3), 6).tolist() == []
    assert first_within(random_hashes(600), none, 6).tolist() == [-1] * 600
