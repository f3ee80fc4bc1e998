"""Agreement statistics against DuckDB, against spelt-out resamples, against published figures, and by simulation."""

import math

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.method.alignment.agreement import agreement, rater_agreement

# Few different values, so that ties are everywhere; the judge may not have scored.
grades = st.integers(1, 4).map(float)
answers = st.lists(
    st.tuples(st.one_of(st.none(), grades), grades, st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=25
)


def table(values, ratings, prompts, images) -> pa.Table:
    columns = {"x": values, "y": ratings, "prompt": prompts, "image": images}
    return pa.table({"i": list(range(len(values))), **columns})


def by_duckdb(rows: pa.Table) -> dict[str, float | None]:
    """The four statistics in SQL, from their definitions."""
    return (
        duckdb.sql(
            """
            WITH ranked AS (
                SELECT *, rank() OVER (ORDER BY x) + (count(*) OVER (PARTITION BY x) - 1) / 2 AS rx,
                          rank() OVER (ORDER BY y) + (count(*) OVER (PARTITION BY y) - 1) / 2 AS ry FROM rows
            ), pairs AS (
                SELECT sign(a.x - b.x) AS sx, sign(a.y - b.y) AS sy, a.prompt = b.prompt AS together
                FROM rows a JOIN rows b ON a.i < b.i
            )
            SELECT (SELECT corr(x, y) FROM rows) AS pearson, (SELECT corr(rx, ry) FROM ranked) AS spearman,
                (SELECT sum(sx * sy) / nullif(sqrt(sum(sx * sx) * sum(sy * sy)), 0) FROM pairs) AS kendall,
                (SELECT avg(CASE WHEN sx = 0 THEN 0.5 WHEN sx = sy THEN 1 ELSE 0 END)
                 FROM pairs WHERE together AND sy <> 0) AS accuracy
            """
        )
        .to_arrow_table()
        .to_pylist()[0]
    )


def known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else pytest.approx(value, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(answers)
def test_every_statistic_is_what_duckdb_computes_ties_and_unscored_answers_included(rows):
    values, ratings, images, which = (list(column) for column in zip(*rows, strict=True))
    prompts = [f"{image}-{one}" for image, one in zip(images, which, strict=True)]
    found = agreement(values, ratings, prompts, [str(image) for image in images], resamples=2)
    scored = [i for i, value in enumerate(values) if value is not None]
    assert (found.answers, found.unscored) == (len(scored), len(values) - len(scored))
    assert found.images == len({images[i] for i in scored})
    some = table(*([column[i] for i in scored] for column in (values, ratings, prompts, images)))
    expected = by_duckdb(some)
    assert found.pearson.value == known(expected["pearson"])
    assert found.spearman.value == known(expected["spearman"])
    assert found.kendall.value == known(expected["kendall"])
    assert found.pairs.accuracy.value == known(expected["accuracy"])
    assert 0 <= found.pairs.right + found.pairs.tied <= found.pairs.pairs


def made(images: int, an_image: int, rho: float, rng: np.random.Generator, within: float = 0.5):
    """Scores and ratings of correlation `rho`; a share `within` of each one's variance is the image's."""
    noise = rng.standard_normal((2, images, an_image)) * math.sqrt(1 - within)
    noise += rng.standard_normal((2, images, 1)) * math.sqrt(within)
    x, y = noise[0], rho * noise[0] + math.sqrt(1 - rho**2) * noise[1]
    names = np.repeat([f"image {i}" for i in range(images)], an_image).tolist()
    return x.ravel().tolist(), y.ravel().tolist(), names, names


@pytest.mark.parametrize("coarse", [False, True])
def test_an_interval_is_that_of_the_resampled_answers_spelt_out(coarse):
    """Each resample is written out, an image's answers as often as it was drawn, and given to DuckDB."""
    rng = np.random.default_rng(3)
    x, y, prompts, images = made(7, 4, 0.5, rng)
    x, y = [round(v, 0 if coarse else 6) for v in x], [round(v, 0) for v in y]
    found = agreement(x, y, prompts, images, resamples=40, seed=5)
    drawn = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), 40)
    samples = {name: [] for name in ("pearson", "spearman", "kendall")}
    for weights in drawn:
        places = [i for i in range(len(x)) for _ in range(weights[i // 4])]
        one = by_duckdb(table(*([column[i] for i in places] for column in (x, y, prompts, images))))
        for name, values in samples.items():
            values.append(one[name])
    for name, values in samples.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert (getattr(found, name).low, getattr(found, name).high) == (known(low), known(high))


def test_intervals_cover_the_truth_though_answers_of_an_image_are_alike():
    """Resampling answers as if they were independent would cover far less (the last figure)."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for number in range(150):
        x, y, prompts, images = made(40, 6, 0.5, rng, within=0.8)
        found = agreement(x, y, prompts, images, resamples=200).pearson
        covered += found.low <= 0.5 <= found.high
        if number < 50:
            alone = agreement(x, y, prompts, [str(i) for i in range(len(x))], resamples=100).pearson
            naive += alone.low <= 0.5 <= alone.high
    assert 133 <= covered <= 149
    assert naive < 40


def test_ratings_dealt_at_random_are_rarely_taken_for_agreement():
    rng = np.random.default_rng(1)
    alarms = {"pearson": 0, "spearman": 0, "kendall": 0, "pairs": 0}
    for _ in range(200):
        x, y, prompts, images = made(40, 5, 0.0, rng)
        found = agreement(x, y, prompts, images, resamples=200)
        for name in ("pearson", "spearman", "kendall"):
            one = getattr(found, name)
            alarms[name] += not one.low <= 0 <= one.high
        alarms["pairs"] += not found.pairs.accuracy.low <= 0.5 <= found.pairs.accuracy.high
    assert max(alarms.values()) <= 22  # 5 % of 200 are 10
    assert min(alarms.values()) >= 1


def test_perfect_and_opposite_judges():
    ratings = [1.0, 2.0, 3.0, 4.0] * 5
    images = [f"image {i // 4}" for i in range(20)]
    for sign in (1, -1):
        found = agreement([sign * value for value in ratings], ratings, images, images, resamples=50)
        for one in (found.pearson, found.spearman, found.kendall):
            assert one.value == one.low == one.high == pytest.approx(sign)
        assert found.pairs.pairs == 30
        assert found.pairs.accuracy.value == (1.0 if sign == 1 else 0.0)


def test_a_monotone_map_changes_pearson_alone():
    rng = np.random.default_rng(4)
    x, y, prompts, images = made(10, 4, 0.7, rng)
    plain, mapped = agreement(x, y, prompts, images), agreement(np.exp(x).tolist(), y, prompts, images)
    assert plain.spearman == mapped.spearman and plain.kendall == mapped.kendall and plain.pairs == mapped.pairs
    assert plain.pearson.value != pytest.approx(mapped.pearson.value, abs=1e-3)


def test_what_is_not_defined_is_no_number():
    same = agreement([0.5] * 6, [1.0, 2.0, 3.0] * 2, ["p"] * 6, list("aabbcc"))
    assert same.pearson.value is same.spearman.value is same.kendall.value is None
    assert same.pairs.accuracy.value == 0.5 and same.pairs.tied == same.pairs.pairs == 12
    nothing = agreement([None, None], [1.0, 2.0], ["p", "q"], ["a", "b"])
    assert (nothing.answers, nothing.images, nothing.unscored) == (0, 0, 2)
    assert nothing.pearson.value is nothing.kendall.value is nothing.pairs.accuracy.value is None


def test_one_image_has_a_value_and_no_interval():
    found = agreement([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], ["p"] * 3, ["a"] * 3)
    assert found.spearman.value == pytest.approx(0.5) and found.spearman.low is None


def test_resamples_without_a_pair_are_counted_and_left_out():
    """One image has two answers to order: a quarter of the resamples of two images miss it."""
    found = agreement([1.0, 2.0, 3.0], [1.0, 2.0, 1.0], list("ppq"), list("aab"), resamples=2000)
    assert found.pairs.accuracy.undefined == pytest.approx(2000 / 4, rel=0.1)
    assert (found.pairs.accuracy.low, found.pairs.accuracy.high) == (1.0, 1.0)


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): 4 observers, 12 units, None where one didn't rate.
OBSERVED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_alpha_is_the_published_one():
    units = [[value for value in unit if value is not None] for unit in zip(*OBSERVED, strict=True)]
    found = rater_agreement(units, [str(i) for i in range(len(units))])
    assert found.alpha.value == pytest.approx(0.849, abs=5e-4)
    assert (found.answers, found.ratings) == (11, 40)  # a unit that one observer rated says nothing
    assert found.alpha.low < 0.849 < found.alpha.high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(grades, min_size=1, max_size=4), min_size=1, max_size=12))
def test_alpha_is_the_one_of_all_pairs_spelt_out(units):
    found = rater_agreement(units, [str(i) for i in range(len(units))], resamples=10)
    several = [unit for unit in units if len(unit) > 1]
    assert (found is None) == (not several)
    if several:
        pool = [value for unit in several for value in unit]
        within = sum((a - b) ** 2 / (len(unit) - 1) for unit in several for a in unit for b in unit) / len(pool)
        overall = sum((a - b) ** 2 for a in pool for b in pool) / (len(pool) * (len(pool) - 1))
        assert found.alpha.value == (known(1 - within / overall) if overall else None)


def test_raters_who_agree_and_raters_who_guess():
    rng = np.random.default_rng(2)
    truth = rng.integers(1, 6, 200)
    images = [str(i // 4) for i in range(200)]
    alike = rater_agreement([[float(t)] * 3 for t in truth], images, resamples=100)
    assert alike.alpha.value == alike.one_against_others.value == pytest.approx(1)
    alarms = 0
    for _ in range(100):
        guessed = rater_agreement(rng.integers(1, 6, (200, 3)).astype(float).tolist(), images, resamples=100)
        alarms += not guessed.alpha.low <= 0 <= guessed.alpha.high
        assert abs(guessed.one_against_others.value) < 0.25
    assert alarms <= 14  # 5 % of 100 are 5


def test_the_same_seed_gives_the_same_interval():
    x, y, prompts, images = made(12, 3, 0.4, np.random.default_rng(6))
    assert agreement(x, y, prompts, images, seed=1) == agreement(x, y, prompts, images, seed=1)
    assert agreement(x, y, prompts, images, seed=1) != agreement(x, y, prompts, images, seed=2)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    x, y, prompts, images = made(12, 3, 0.4, np.random.default_rng(6))
    whole = agreement(x, y, prompts, images, resamples=100)
    monkeypatch.setattr("m3po_dagster.method.alignment.agreement.CELLS_AT_ONCE", 1)
    blocks = agreement(x, y, prompts, images, resamples=100)
    for name in ("pearson", "spearman", "kendall"):
        one, other = getattr(whole, name), getattr(blocks, name)
        assert (one.value, one.low, one.high) == (known(other.value), known(other.low), known(other.high))
