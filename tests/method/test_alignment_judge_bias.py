"""What judges of known rules look like, and how seldom a fair one looks like them."""

from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.method.alignment.judge_bias import (
    by_prompt,
    flipped,
    longer_wins,
    mean_fall,
    place_correlations,
    rank_correlation,
    top_ties,
)

LEVEL, BOUND = 0.99, 0.1


def places(rng, prompts: int, answers: int, size: int = 8) -> np.ndarray:
    """Each answer's place in its request, as a judge that permutes and cuts into even groups shows them."""
    found = np.empty(prompts * answers)
    for prompt in range(prompts):
        for group in np.array_split(rng.permutation(answers), -(-answers // size)):
            found[prompt * answers + group] = np.arange(1, len(group) + 1)
    return found


def grades(value: np.ndarray) -> np.ndarray:
    """Whole grades from 1 to 5."""
    return np.clip(np.round(value + 3), 1, 5)


def biased(found) -> bool:
    return any(one.low > BOUND or one.high < -BOUND for one in found.values())


@pytest.mark.parametrize(("prompts", "answers"), [(20, 8), (20, 32), (60, 12)])
def test_a_fair_judge_is_hardly_ever_called_biased(prompts, answers):
    groups = by_prompt(np.repeat(np.arange(prompts), answers).astype(str))
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        value = grades(rng.normal(size=prompts * answers))
        alarms += biased(place_correlations(groups, value, places(rng, prompts, answers), LEVEL))
    assert alarms <= 1


@pytest.mark.parametrize("kind", ["place", "ends"])
def test_a_judge_that_prefers_places_is_caught_by_the_figure_of_its_kind(kind):
    prompts, answers = 40, 16
    groups = by_prompt(np.repeat(np.arange(prompts), answers).astype(str))
    caught = Counter()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        place = places(rng, prompts, answers)
        gain = 0.25 * (4.5 - place) if kind == "place" else 0.5 * np.abs(place - 4.5)
        found = place_correlations(groups, grades(rng.normal(size=len(place)) + gain), place, LEVEL)
        for what, one in found.items():
            caught[what] += one.low > BOUND or one.high < -BOUND
        assert (found[kind].value < 0) == (kind == "place")
    assert caught[kind] >= 48 and caught[{"place": "ends", "ends": "place"}[kind]] <= 1


def test_the_first_and_last_of_groups_that_differ_in_size_are_chance_too():
    # 9 answers are groups of 4 and 5: no place of either kind may look preferred over many prompts.
    groups = by_prompt(np.repeat(np.arange(2000), 9).astype(str))
    rng = np.random.default_rng(3)
    found = place_correlations(groups, grades(rng.normal(size=18000)), places(rng, 2000, 9), LEVEL)
    assert all(one.low < 0 < one.high for one in found.values())


def test_pointwise_places_say_nothing():
    groups = by_prompt(["a", "a", "b", "b"])
    found = place_correlations(groups, np.array([1.0, 2.0, 3.0, 1.0]), np.ones(4), LEVEL)
    assert {one.n for one in found.values()} == {0}


@pytest.mark.parametrize(("prompts", "answers"), [(20, 3), (20, 8), (60, 12)])
def test_a_judge_indifferent_to_length_is_hardly_ever_called_biased(prompts, answers):
    groups = by_prompt(np.repeat(np.arange(prompts), answers).astype(str))
    alarms, caught = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        quality, length = rng.normal(size=(2, prompts * answers))
        alarms += longer_wins(groups, grades(quality), length, LEVEL).low > 0.6
        caught += longer_wins(groups, grades(quality + 1.5 * length), length, LEVEL).low > 0.6
    assert alarms <= 1 and caught >= 180


values = st.one_of(st.just(float("nan")), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
answers = st.lists(st.tuples(st.sampled_from("abc"), values, values), min_size=1, max_size=24)


def table(rows) -> pa.Table:
    columns = dict(zip(("prompt", "x", "y"), map(list, zip(*rows, strict=True)), strict=True))
    return pa.table({"id": list(range(len(rows))), **columns})


PAIRS = """
    select prompt, sign(one.x - two.x) as dx, sign(one.y - two.y) as dy
    from rows one join rows two using (prompt) where one.id < two.id
    and not isnan(one.x + one.y + two.x + two.y)
"""


@given(answers)
def test_shares_of_pairs_are_those_that_duckdb_counts(found):
    rows = table(found)
    groups, x, y = by_prompt(rows["prompt"].to_pylist()), rows["x"].to_numpy(), rows["y"].to_numpy()
    counts = {
        "longer": ("dx <> 0 and dy <> 0", "dx = dy", longer_wins(groups, x, y, LEVEL)),
        "flipped": ("dx <> 0", "dx = -dy", flipped(groups, x, y, LEVEL)),
    }
    for counted, hit, ours in counts.values():
        ((total, hits, prompts),) = duckdb.sql(
            f"select count(*), count(*) filter ({hit}), count(distinct prompt) from ({PAIRS}) where {counted}"
        ).fetchall()
        assert ours.n == prompts
        if prompts > 1:
            assert ours.value == pytest.approx(hits / total)


@given(answers)
def test_ties_and_falls_are_those_that_duckdb_counts(found):
    rows = table(found)
    groups, x, y = by_prompt(rows["prompt"].to_pylist()), rows["x"].to_numpy(), rows["y"].to_numpy()
    tied, share = top_ties(groups, x)
    (counted,) = duckdb.sql(
        """
        select avg((top > 1)::int), avg(top / n), count(*) from (
            select count(*) as n, count(*) filter (x = best) as top from (
                select prompt, x, max(x) over (partition by prompt) as best from rows where not isnan(x)
            ) group by prompt having count(*) > 1
        )
        """
    ).fetchall()
    assert (tied.n, share.n) == (counted[2], counted[2])
    if share.n > 1:
        assert (tied.value, share.value) == pytest.approx(counted[:2])
    fall = mean_fall(groups, x, y, LEVEL)
    ((mean, prompts),) = duckdb.sql(
        "select avg(d), count(*) from (select avg(x - y) as d from rows where not isnan(x + y) group by prompt)"
    ).fetchall()
    assert fall.n == prompts
    if prompts > 1:
        assert fall.value == pytest.approx(mean, abs=1e-12)


@given(answers)
def test_rank_correlation_is_that_of_duckdbs_ranks(found):
    rows = table(found)
    ours = rank_correlation(by_prompt(rows["prompt"].to_pylist()), rows["x"].to_numpy(), rows["y"].to_numpy(), LEVEL)
    each = duckdb.sql(
        """
        select corr(a, b) as r, count(*) - 1 as w from (
            select prompt,
                rank() over (partition by prompt order by x) + (count(*) over (partition by prompt, x) - 1) / 2 as a,
                rank() over (partition by prompt order by y) + (count(*) over (partition by prompt, y) - 1) / 2 as b
            from rows where not isnan(x + y)
        ) group by prompt having count(distinct a) > 1 and count(distinct b) > 1
        """
    ).fetchall()
    assert ours.n == len(each)
    if len(each) > 1:
        assert ours.value == pytest.approx(np.average([r for r, _ in each], weights=[w for _, w in each]), abs=1e-9)


def test_a_blind_judge_that_wavers_seldom_seems_to_see():
    groups = by_prompt(np.repeat(np.arange(8), 16).astype(str))
    seems, sees = 0, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        quality, first, second = rng.normal(size=(3, 128))
        other = np.repeat(np.maximum(0, rng.normal(1, 1, 8)), 16)
        seems += mean_fall(groups, quality + first, quality + second, 0.9).low > 0
        sees += mean_fall(groups, quality + first, quality + second - other, 0.9).low > 0
    assert seems <= 0.08 * 400 and sees >= 0.9 * 400
