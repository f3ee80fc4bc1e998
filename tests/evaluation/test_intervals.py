import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3po_dagster.evaluation.intervals import (
    Clusters,
    Estimate,
    estimate_metrics,
    ratio,
    resample_weights,
)

answers = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40)


def table(rows, strata=None):
    """Rows are (image, hits, tries)."""
    return pa.table(
        {
            "question_id": [str(number) for number in range(len(rows))],
            "image_uri": [f"{image}.png" for image, _, _ in rows],
            "group": ["all"] * len(rows),
            "stratum": strata or [""] * len(rows),
            "hits": [float(hits) for _, hits, _ in rows],
            "tries": [float(tries) for _, _, tries in rows],
        }
    )


def metrics(sums):
    hits, tries = sums["all", "hits"], sums["all", "tries"]
    return {"share": Estimate(ratio(hits, tries, empty=0.0), tries), "hits": Estimate(hits, tries)}


@given(answers)
def test_an_interval_is_ordered_and_the_point_is_the_data_s(rows):
    for metric in estimate_metrics(metrics, table(rows), resamples=50):
        assert metric.ci_low <= metric.ci_high
    share, hits = estimate_metrics(metrics, table(rows), resamples=50)
    tries = sum(row[2] for row in rows)
    assert hits.value == sum(row[1] for row in rows)
    assert share.value == pytest.approx(hits.value / tries if tries else 0)
    assert share.n == tries


@given(answers, st.randoms(use_true_random=False))
def test_the_order_of_the_questions_does_not_matter(rows, chance):
    one = table(rows)
    order = list(range(len(rows)))
    chance.shuffle(order)
    assert estimate_metrics(metrics, one, 50) == estimate_metrics(metrics, one.take(order), 50)


@given(answers, st.integers(0, 5))
def test_one_seed_is_one_interval(rows, seed):
    assert estimate_metrics(metrics, table(rows), 50, seed) == estimate_metrics(metrics, table(rows), 50, seed)


@given(answers)
def test_asking_everything_twice_about_an_image_adds_no_certainty(rows):
    once, twice = (estimate_metrics(metrics, table(given), 50)[0] for given in (rows, rows + rows))
    assert (once.value, once.ci_low, once.ci_high) == pytest.approx((twice.value, twice.ci_low, twice.ci_high))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30))
def test_a_metric_without_spread_has_an_interval_without_width(images):
    share, _ = estimate_metrics(metrics, table([(image, 2, 4) for image in images]), 50)
    assert (share.value, share.ci_low, share.ci_high) == (0.5, 0.5, 0.5)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 99))
def test_every_resample_keeps_the_size_of_every_stratum(strata, seed):
    weights = resample_weights(strata, 20, seed)
    assert weights.shape == (20, len(strata))
    for stratum in set(strata):
        members = [position for position, other in enumerate(strata) if other == stratum]
        assert (weights[:, members].sum(axis=1) == len(members)).all()


def test_images_are_drawn_equally_often():
    weights = resample_weights([""] * 20, 4000)
    assert weights.mean(axis=0) == pytest.approx(np.ones(20), abs=0.1)
    assert weights.var(axis=0) == pytest.approx(np.full(20, 1 - 1 / 20), abs=0.15)


def test_the_interval_is_the_loop_over_resampled_images():
    """Against resampling whole images one by one and counting again."""
    chance = np.random.default_rng(3)
    rows = [(image, int(chance.integers(0, 3)), int(chance.integers(1, 5))) for image in range(15) for _ in range(3)]
    weights = resample_weights([""] * 15, 200, seed=5)
    names = Clusters.of(table(rows)).images
    shares = []
    for drawn in weights:
        repeated = [row for row in rows for _ in range(int(drawn[names.index(f"{row[0]}.png")]))]
        shares.append(sum(row[1] for row in repeated) / sum(row[2] for row in repeated))
    share, _ = estimate_metrics(metrics, table(rows), 200, seed=5)
    assert (share.ci_low, share.ci_high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])))


def test_95_of_100_intervals_hold_the_truth_when_questions_of_an_image_agree():
    """Three questions an image with one outcome: an interval over questions would hold it far less often."""
    chance = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        rows = [(image, hit, 1) for image, hit in enumerate(chance.random(80) < 0.3) for _ in range(3)]
        share, _ = estimate_metrics(metrics, table(rows), 300, seed=trial)
        held += share.ci_low <= 0.3 <= share.ci_high
    assert 0.90 <= held / 300 <= 0.985


def test_a_resample_without_a_small_group_is_left_out():
    rows = [(image, 1, 0) for image in range(8)] + [(8, 1, 2)]

    def undefined(sums):
        return {"share": Estimate(ratio(sums["all", "hits"] * 0 + 1, sums["all", "tries"]), sums["all", "tries"])}

    (metric,) = estimate_metrics(undefined, table(rows), 200)
    assert 0 < metric.ci_low <= metric.value == 0.5


def test_an_image_in_two_strata_is_refused():
    with pytest.raises(ValueError, match="two strata"):
        estimate_metrics(metrics, table([(0, 1, 2), (0, 1, 2)], ["a", "b"]))
