import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from m3po_dagster.evaluation.comparison import AT_ONCE, difference, p_value, sampled
from m3po_dagster.evaluation.intervals import Estimate, estimate_metrics, ratio

answers = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40)


def table(rows):
    """Rows are (image, hits, tries)."""
    return pa.table(
        {
            "question_id": [str(number) for number in range(len(rows))],
            "image_uri": [f"{image}.png" for image, _, _ in rows],
            "group": ["all"] * len(rows),
            "stratum": [""] * len(rows),
            "hits": [float(hits) for _, hits, _ in rows],
            "tries": [float(tries) for _, _, tries in rows],
        }
    )


def metrics(sums):
    hits, tries = sums["all", "hits"], sums["all", "tries"]
    return {"share": Estimate(ratio(hits, tries, empty=0.0), tries), "hits": Estimate(hits, tries)}


def compared(ours, theirs, metric="share", resamples=50, untrained=(), seed=0):
    """Ours minus theirs; each is the rows of every seed."""
    tables = {"ours": [table(rows) for rows in ours], "theirs": [table(rows) for rows in theirs]}
    both = sampled(metrics, tables, resamples, seed, untrained)
    return difference(both["ours"], both["theirs"], metric, seed)


@settings(max_examples=40)
@given(answers, st.sampled_from(["share", "hits"]))
def test_no_difference_is_exactly_none(rows, metric):
    found = compared([rows], [rows], metric)
    assert (found.value, found.ci_low, found.ci_high, found.p_value) == (0, 0, 0, 1)
    assert not found.significant


def test_equal_seeds_are_no_difference_whatever_float_arithmetic_makes_of_their_mean():
    """The mean of three equal numbers is not always that number."""
    rows = [(image, 1, 10) for image in range(7)]
    found = compared([rows] * 3, [rows])
    assert (found.value, found.ci_low, found.ci_high, found.p_value) == (0, 0, 0, 1)


@settings(max_examples=40)
@given(answers, st.randoms(use_true_random=False))
def test_the_difference_turned_round_is_its_negative(rows, chance):
    other = [(image, chance.randint(0, 3), tries) for image, _, tries in rows]
    there, back = compared([rows], [other]), compared([other], [rows])
    assert (there.value, there.ci_low, there.ci_high) == pytest.approx((-back.value, -back.ci_high, -back.ci_low))
    assert (there.significant, there.p_value) == (back.significant, back.p_value)


def test_pairing_sees_what_two_intervals_would_not():
    """Images differ a lot, the recipes by a little on every image."""
    chance = np.random.default_rng(1)
    base = [(image, int(hits), 10) for image, hits in enumerate(chance.integers(0, 9, 60))]
    better = [(image, hits + 1, tries) for image, hits, tries in base]
    (one, _), (other, _) = (estimate_metrics(metrics, table(rows)) for rows in (base, better))
    assert one.ci_high > other.ci_low
    found = compared([better], [base])
    assert found.significant
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((0.1, 0.1, 0.1))


def test_seeds_are_averaged_before_the_difference():
    base = [(0, 1, 2), (1, 1, 2)]
    seeds = [[(0, 2, 2), (1, 1, 2)], [(0, 0, 2), (1, 1, 2)], [(0, 2, 2), (1, 2, 2)]]
    assert compared(seeds, [base]).value == pytest.approx((0.75 + 0.25 + 1) / 3 - 0.5)


def test_other_questions_are_refused():
    one, other = [(0, 1, 2), (1, 1, 2)], [(0, 1, 2), (2, 1, 2)]
    with pytest.raises(ValueError, match="not about the same questions: image_uri differs for 1, first 1"):
        compared([one], [other])
    with pytest.raises(ValueError, match="not about the same questions: question_id"):
        compared([one], [one[:1]])


def test_resamples_in_several_pieces_are_as_many_and_unlike():
    rows = [(image, image % 3, 4) for image in range(30)]
    both = sampled(metrics, {"a": [table(rows)]}, AT_ONCE + 10)
    drawn = both["a"].resampled["hits"]
    assert len(drawn) == AT_ONCE + 10
    assert not np.array_equal(drawn[:10], drawn[AT_ONCE:])


def test_what_is_fixed_or_missing():
    one = sampled(metrics, {"a": [table([(image, 1, 2) for image in range(5)])]}, 50)["a"]
    found = difference(one, 0.4, "share")
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference(one, one, "unheard of") is None


# What is known of seeds


def test_the_interval_says_whether_it_covers_seeds():
    base, one = [(0, 1, 2), (1, 1, 2)], [(0, 2, 2), (1, 1, 2)]
    assert compared([one] * 3, [base], untrained=["theirs"]).over == "seeds and images"
    assert compared([one] * 3, [base] * 4).over == "seeds and images"
    assert compared([one] * 2, [base], untrained=["theirs"]).over == "images"
    # Three seeds here tell nothing of the other recipe's.
    assert compared([one] * 3, [base]).over == "images and the seeds of one side"


def test_seeds_that_scatter_widen_the_interval_as_student_has_it():
    """Every image alike: images add nothing, and the interval is that of a t test on three seeds."""
    base = [(image, 5, 10) for image in range(10)]
    seeds = [[(image, hits, 10) for image in range(10)] for hits in (6, 7, 9)]
    found = compared(seeds, [base], resamples=40_000, untrained=["theirs"])
    values = np.array([0.6, 0.7, 0.9]) - 0.5
    half = 4.3027 * values.std(ddof=1) / np.sqrt(3)
    assert found.value == pytest.approx(values.mean())
    assert (found.ci_low, found.ci_high) == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)


def test_a_recipe_with_one_seed_does_not_make_the_other_s_seeds_certain():
    one = [(image, 5, 10) for image in range(10)]
    seeds = [[(image, hits, 10) for image in range(10)] for hits in (6, 7, 9)]
    known, half_known = compared(seeds, [one], untrained=["theirs"]), compared(seeds, [one])
    assert (half_known.ci_low, half_known.ci_high) == (known.ci_low, known.ci_high)
    assert half_known.ci_low < half_known.value - 0.1


def test_two_recipes_of_unlike_spread_and_unlike_many_seeds_are_welch_s():
    ours = [[(image, hits, 20) for image in range(4)] for hits in (9, 12, 16)]
    theirs = [[(image, hits, 20) for image in range(4)] for hits in (7, 7, 8, 8, 8)]
    found = compared(ours, theirs, resamples=40_000)
    welch = stats.ttest_ind([9 / 20, 12 / 20, 16 / 20], [7 / 20, 7 / 20, 8 / 20, 8 / 20, 8 / 20], equal_var=False)
    assert found.p_value == pytest.approx(welch.pvalue, abs=0.01)


@pytest.mark.parametrize(
    "seeds", [(3, 3), pytest.param((5, 3), marks=pytest.mark.slow), pytest.param((3, 0), marks=pytest.mark.slow)]
)
def test_95_of_100_intervals_hold_a_difference_that_is_none(seeds):
    """Recipes that differ by chance alone: by seeds that scatter, on images that are hard or easy for both.

    An interval over images alone holds the truth far less often: the test would see it, were seeds left out.
    """
    chance = np.random.default_rng(2)
    images, trials, held, held_over_images = 50, 200, 0, 0
    for trial in range(trials):
        hard = chance.random(images)

        def recipe(number, hard=hard):
            drift = chance.normal(0, 0.12, max(number, 1)) if number else np.zeros(1)
            right = chance.random((len(drift), images)) < np.clip(0.25 + 0.5 * hard + drift[:, None], 0, 1)
            return [[(image, int(hit), 1) for image, hit in enumerate(row)] for row in right]

        ours, theirs = recipe(seeds[0]), recipe(seeds[1])
        untrained = [] if seeds[1] else ["theirs"]
        found = compared(ours, theirs, resamples=300, untrained=untrained, seed=trial)
        assert found.over == "seeds and images"
        held += found.ci_low <= 0 <= found.ci_high
        first = compared(ours[:1], theirs[:1], resamples=300, seed=trial)
        held_over_images += first.ci_low <= 0 <= first.ci_high
    assert held / trials >= 0.93
    assert held_over_images / trials < 0.92


def test_a_p_value_is_twice_the_rarer_sign_and_never_none():
    assert p_value(np.array([1.0] * 97 + [-1.0] * 2)) == pytest.approx(2 * 3 / 100)
    assert p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(9)) == 1
