import pyarrow as pa
import pytest
from boards import benchmarks, results

from m3po_dagster.evaluation.leaderboard import LEADERBOARD, leaderboard
from m3po_dagster.storage import tables


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def scored(suite):
    return results(suite)


@pytest.fixture(scope="module")
def board(suite, scored):
    return leaderboard(*scored, suite, ["m3po"], resamples=1000)


def rows_of(table, against="base"):
    return {
        (row["recipe"], row["benchmark"], row["metric"]): row for row in table.to_pylist() if row["against"] == against
    }


def test_the_schema_is_the_store_s(board):
    assert board.schema == LEADERBOARD
    assert [(field.name, field.type, field.nullable) for field in LEADERBOARD] == [
        (field.name, field.type, field.nullable) for field in tables.LEADERBOARD.schema
    ]


def test_means_seeds_and_differences_to_base(board):
    rows = rows_of(board)
    assert len(rows) == 4 * (24 + 6)
    base, ours, same = (rows[recipe, "pope", "accuracy"] for recipe in ("base", "m3po", "same"))
    assert [base[name] for name in ("mean", "seed_sd", "n_seeds", "difference", "significant", "p_value")] == [
        50.0, None, 1, None, None, None,
    ]  # fmt: skip
    assert (ours["mean"], ours["seed_sd"], ours["n_seeds"]) == pytest.approx((77.5, 2.5, 3))
    assert ours["difference"] == pytest.approx(ours["mean"] - base["mean"])
    assert ours["ci_low"] < ours["difference"] < ours["ci_high"]
    assert ours["significant"] and ours["interval_over"] == "seeds and images"
    assert (same["difference"], same["ci_low"], same["ci_high"], same["significant"]) == (0, 0, 0, False)
    assert (same["p_value"], same["interval_over"]) == (1, "images")
    hallucinated = rows["m3po", "scenes", "chair_s"]
    assert hallucinated["difference"] == pytest.approx(22.5 - 50)
    assert hallucinated["ci_high"] < 0
    assert hallucinated["significant"]
    assert rows["m3po", "scenes", "recall"]["significant"] is False
    for (recipe, name, metric), row in rows.items():
        if recipe != "base":
            assert row["difference"] == pytest.approx(row["mean"] - rows["base", name, metric]["mean"])


def test_differences_to_another_recipe(board):
    rows, to_base = rows_of(board, "m3po"), rows_of(board)
    assert rows.keys() == to_base.keys()
    base, ours, twin = (rows[recipe, "pope", "accuracy"] for recipe in ("base", "m3po", "alpha0"))
    assert ours["difference"] is None
    assert base["difference"] == pytest.approx(-to_base["m3po", "pope", "accuracy"]["difference"])
    assert twin["difference"] == pytest.approx(twin["mean"] - ours["mean"])
    assert twin["interval_over"] == "seeds and images"


TURNED = ("difference", "ci_low", "ci_high")
SAME = ("p_value", "p_corrected", "significant", "significant_corrected", "interval_over")


def check_turned(one, other):
    """Two rows are one comparison from its two sides."""
    assert [one[name] for name in SAME] == [other[name] for name in SAME]
    found = [one[name] for name in TURNED]
    assert found == ([-other[name] for name in ("difference", "ci_high", "ci_low")])


def test_two_recipes_have_one_difference_one_interval_and_one_verdict(board):
    to_base, rows = rows_of(board), rows_of(board, "m3po")
    figures = [key[1:] for key in rows if key[0] == "base"]
    assert len(figures) == 30
    for figure in figures:
        check_turned(rows["base", *figure], to_base["m3po", *figure])
    # What is compared with base already counts in no second correction.
    p_values = [rows[recipe, "pope", "accuracy"]["p_value"] for recipe in ("same", "alpha0")]
    corrected = [rows[recipe, "pope", "accuracy"]["p_corrected"] for recipe in ("same", "alpha0")]
    assert min(corrected) == pytest.approx(min(1, 2 * min(p_values)))


def test_any_two_recipes_to_compare_with_are_compared_once(suite, scored):
    references = ["base", "m3po", "alpha0"]
    # An equal recipe of an earlier reference is turned with it.
    table = leaderboard(*scored, suite, references, same_as={"same": "base"}, resamples=100)
    by = {against: rows_of(table, against) for against in references}
    for number, earlier in enumerate(references):
        for later in references[number + 1 :]:
            check_turned(by[later][earlier, "pope", "accuracy"], by[earlier][later, "pope", "accuracy"])
    assert by["base"]["same", "pope", "accuracy"]["difference"] is None
    for against in ("m3po", "alpha0"):
        check_turned(by[against]["same", "pope", "accuracy"], by["base"][against, "pope", "accuracy"])
    assert by["m3po"]["same", "pope", "accuracy"]["same_as"] == "base"


def test_the_correction_is_over_the_recipes_of_a_metric(board):
    rows = rows_of(board)
    family = [rows[recipe, "pope", "accuracy"] for recipe in ("m3po", "same", "alpha0")]
    p_values = sorted(row["p_value"] for row in family)
    smallest = next(row for row in family if row["p_value"] == p_values[0])
    assert smallest["p_corrected"] == pytest.approx(min(1, 3 * p_values[0]))
    for row in family:
        assert row["p_corrected"] >= row["p_value"]
        assert row["significant_corrected"] == (row["p_corrected"] < 0.05)


def test_an_equal_recipe_has_the_first_one_s_figures_and_counts_in_no_correction(suite, scored):
    scores, per_question = scored
    twins = {"m3po": "twin"}
    doubled = scores.to_pylist() + [
        {**row, "recipe": twins[row["recipe"]]} for row in scores.to_pylist() if row["recipe"] in twins
    ]
    more = {
        (twins[recipe], seed, name): table for (recipe, seed, name), table in per_question.items() if recipe in twins
    }
    both = pa.Table.from_pylist(doubled, scores.schema), per_question | more
    alike = rows_of(leaderboard(*both, suite, same_as={"twin": "m3po"}, resamples=200))
    apart = rows_of(leaderboard(*both, suite, resamples=200))
    for name in ("pope", "scenes"):
        for metric in ("accuracy",) if name == "pope" else ("chair_i", "recall"):
            first, second = alike["m3po", name, metric], alike["twin", name, metric]
            assert {**second, "recipe": "m3po", "same_as": None} == first
            assert second["same_as"] == "m3po"
    assert apart["m3po", "pope", "accuracy"]["p_corrected"] > alike["m3po", "pope", "accuracy"]["p_corrected"]
    # With other seeds it is another recipe after all.
    fewer = pa.Table.from_pylist([row for row in doubled if (row["recipe"], row["seed"]) != ("twin", 2)], scores.schema)
    other = rows_of(leaderboard(fewer, both[1], suite, same_as={"twin": "m3po"}, resamples=50))
    assert other["twin", "pope", "accuracy"]["same_as"] is None
    assert other["twin", "pope", "accuracy"]["interval_over"] == "images"


def test_base_comes_first(suite, scored):
    scores, per_question = scored
    turned = scores.take(list(reversed(range(scores.num_rows))))
    table = leaderboard(turned, per_question, suite, resamples=50)
    assert list(dict.fromkeys(table["recipe"].to_pylist())) == ["base", "alpha0", "same", "m3po"]


def test_a_benchmark_that_a_recipe_was_not_asked(suite, scored):
    scores, per_question = scored
    keep = [not (row["recipe"] == "m3po" and row["benchmark"] == "scenes") for row in scores.to_pylist()]
    rows = rows_of(leaderboard(scores.filter(pa.array(keep)), per_question, suite, ["m3po"], resamples=50), "m3po")
    assert ("m3po", "scenes", "recall") not in rows
    assert rows["alpha0", "scenes", "recall"]["difference"] is None
    assert rows["alpha0", "pope", "accuracy"]["difference"] is not None


def test_what_is_missing_is_named(suite, scored):
    scores, per_question = scored
    with pytest.raises(ValueError, match="no scores of recipe none"):
        leaderboard(scores, per_question, suite, base="none")
    with pytest.raises(ValueError, match="no scores of recipe gone"):
        leaderboard(scores, per_question, suite, ["gone"])
    fewer = {key: value for key, value in per_question.items() if key != ("m3po", 1, "pope")}
    with pytest.raises(ValueError, match="no per-question results of recipe m3po, seed 1, benchmark pope"):
        leaderboard(scores, fewer, suite)
    keep = [not (row["recipe"] == "base" and row["benchmark"] == "pope") for row in scores.to_pylist()]
    with pytest.raises(ValueError, match="no scores of recipe base on benchmark pope"):
        leaderboard(scores.filter(pa.array(keep)), per_question, suite)
