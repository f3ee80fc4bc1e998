"""What a model card says of an adapter's figures: what the leaderboard says, no more."""

import pytest

from m3po_dagster.evaluation.board import Column
from m3po_dagster.export.measured import Measure, Measured
from m3po_dagster.export.model_card import measured_parts

GRADE = Column("preference", "score", "Judge's grade ↑", 1, 2)
WIN_RATE = Column("preference", "win_rate", "Win rate ↑", 1, 1)
OWN = {"value": 4.694, "ci_low": 4.512, "ci_high": 4.871}


def on_board(difference, low, high, significant, corrected, over="seeds and images", mean=4.7351):
    return {
        "mean": mean,
        "seed_sd": 0.0496,
        "n_seeds": 3,
        "difference": difference,
        "ci_low": low,
        "ci_high": high,
        "significant": significant,
        "significant_corrected": corrected,
        "interval_over": over,
    }


def lines(*measures):
    *words, table = measured_parts(Measured(measures, ()))
    return " ".join(words), [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(
    ("significant", "corrected", "mark"), [(True, True, " **"), (True, False, " *"), (False, False, "")]
)
def test_a_difference_has_the_leaderboard_s_mark_and_as_many_decimals(significant, corrected, mark):
    board = on_board(0.2341, 0.0412, 0.4488, significant, corrected)
    words, (line,) = lines(Measure(GRADE, "preference", OWN, 4.5011, board))
    assert line == [
        "Judge's grade ↑",
        "4.50",
        "4.69 (4.51 to 4.87)",
        "4.74 ± 0.05",
        "3",
        f"+0.23 (+0.04 to +0.45){mark}",
        "seeds and images",
    ]
    assert "after Holm's correction" in words and "Intervals are not corrected" not in words
    assert "fixed value" not in words


def test_an_interval_says_what_it_covers_and_a_win_rate_what_it_is_compared_with():
    board = on_board(-5.0, -12.5, -0.004, True, False, over="images", mean=45.0)
    words, (line,) = lines(
        Measure(WIN_RATE, "preference", {"value": 45.0, "ci_low": None, "ci_high": None}, 50.0, board, fixed=True)
    )
    assert line[1:3] == ["50.0", "45.0"]
    assert line[5:] == ["−5.000 (−12.500 to −0.004) *", "images"]
    assert "Compared with a fixed value in place of the base model's: Win rate 50." in words


def test_without_a_leaderboard_it_has_its_own_figures_alone():
    _, (line,) = lines(Measure(GRADE, "preference", OWN, None, None))
    assert line == ["Judge's grade ↑", "–", "4.69 (4.51 to 4.87)", "–", "–", "–", "–"]
    (said,) = measured_parts(Measured((), ()))
    assert said.startswith("Not measured")
