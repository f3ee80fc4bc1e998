"""What is said of tables with known figures: nothing is a result that is not significant after the correction."""

import pytest
from boards import row, small_board

from m3po_dagster.evaluation.board import Board, Curve, Question, difference_text, digits_for, signed
from m3po_dagster.evaluation.leaderboard import LEADERBOARD
from m3po_dagster.evaluation.leaderboard_words import answer, answers, curve_sentence, how_decided, paragraphs, verdict

CONFIDENCE = Question("Does the confidence term help?", "m3po", "alpha0")


def board_with(*rows, **more) -> Board:
    return small_board([row("m3po", "accuracy", None, against="m3po"), *rows], **more)


def test_a_paragraph_says_what_is_better_worse_changed_and_not_told_apart():
    board = small_board(
        [
            row("m3po", "accuracy", (4.12, 3.2, 5.0), p=0.001),
            row("m3po", "chair_i", (1.0, 0.4, 1.6), p=0.002),
            row("m3po", "words", (-2.0, -2.5, -1.5), p=0.001),
            row("m3po", "adversarial", (1.0, 0.1, 1.9), p=0.03, corrected=0.09),
            row("m3po", "recall", (0.2, -0.4, 0.8), p=0.6),
            row("m3po", "format", (0, 0, 0), p=1.0),
        ]
    )
    assert paragraphs(board, "base") == [
        "**m3po** (3 seeds; intervals over seeds and images): Better: POPE accuracy +4.1 (+3.2 to +5.0). "
        "Worse: CHAIR-i +1.0 (+0.4 to +1.6). "
        "Changed, neither for better nor for worse: CHAIR words −2.0 (−2.5 to −1.5). "
        "Significant only before the correction, so no result: POPE adversarial +1.0 (+0.1 to +1.9). "
        "Not told apart: CHAIR recall +0.2 (−0.4 to +0.8). "
        "No difference at all: POPE format."
    ]


@pytest.mark.parametrize(
    ("accuracy", "chair_i", "said"),
    [
        ((-2, -3, -1), (3, 2, 4), "Yes, on 2 of 2 figures that have a better direction."),
        ((-2, -3, -1), (3, -2, 8), "Yes, on 1 of 2 figures that have a better direction."),
        ((-2, -3, -1), (-3, -4, -2), "In part: better on 1 and worse on 1 of 2 figures"),
        ((2, 1, 3), (0.1, -2, 2), "No: it is worse on 1 of 2 figures"),
        ((2, -1, 5), (0.1, -2, 2), "Can't be told: none of 2 figures that have a better direction differs"),
    ],
)
def test_a_question_is_answered_by_what_is_significant(accuracy, chair_i, said):
    """The twin is compared with m3po in the table; the question asks the other way round."""
    rows = [
        row("alpha0", metric, found, against="m3po", p=0.001 if found[1] * found[2] > 0 else 0.5)
        for metric, found in (("accuracy", accuracy), ("chair_i", chair_i))
    ]
    text = answer(board_with(*rows), CONFIDENCE)
    assert text.startswith(f"**Does the confidence term help?** {said}")


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ((-2, -3, -1), "Yes, on 1 of 1 figure that has a better direction."),
        ((2, 1, 3), "No: it is worse on 1 of 1 figure that has a better direction"),
        ((2, -1, 5), "Can't be told: the only figure that has a better direction doesn't differ significantly."),
    ],
)
def test_one_figure_is_spoken_of_as_one(accuracy, said):
    found = row("alpha0", "accuracy", accuracy, against="m3po", p=0.001 if accuracy[1] * accuracy[2] > 0 else 0.5)
    assert answer(board_with(found), CONFIDENCE).startswith(f"**Does the confidence term help?** {said}")


def test_a_difference_seen_from_the_other_side_is_turned_with_its_interval():
    board = board_with(row("alpha0", "accuracy", (-2.0, -3.5, -1.0), against="m3po", p=0.001))
    assert verdict(board, "m3po", "alpha0").better == ("POPE accuracy +2.0 (+1.0 to +3.5)",)
    assert verdict(board, "alpha0", "m3po").worse == ("POPE accuracy −2.0 (−3.5 to −1.0)",)


def test_what_nothing_compares_has_no_answer():
    board = board_with(row("sft", "accuracy", (1, 0.5, 2), p=0.001))
    assert answer(board, CONFIDENCE) is None
    assert answers(small_board([row("m3po", "accuracy", (1, 0.5, 2), p=0.001)], questions=[CONFIDENCE])) == []


def test_figures_without_a_better_direction_have_no_say():
    board = board_with(row("alpha0", "words", (-2, -3, -1), against="m3po", p=0.001))
    assert answer(board, CONFIDENCE).startswith("**Does the confidence term help?** Nothing says.")


def test_an_equal_recipe_is_only_named():
    alike = (1, 0.5, 2)
    rows = [row("m3po", "accuracy", alike, p=0.01), row("twin", "accuracy", alike, p=0.01, same_as="m3po")]
    first, second = paragraphs(small_board(rows), "base")
    assert (
        first.startswith("**m3po** (3 seeds") and second == "**twin** is the same as m3po: equal pairs, equal training."
    )


def test_a_curve_in_a_sentence():
    curve = Curve("alpha", "m3po", {"alpha0": 0.0, "m3po": 0.5, "alpha1": 1.0})
    same = row("alpha1", "accuracy", (0.1, -1, 1), against="m3po", p=0.8)
    worse = row("alpha0", "accuracy", (-2, -3, -1), against="m3po", p=0.001)
    assert curve_sentence(board_with(worse, same), curve) == (
        "Against alpha = 0.5 (m3po): alpha = 0 (alpha0) is worse on POPE accuracy −2.0 (−3.0 to −1.0). "
        "No other value differs significantly on a figure that has a better direction."
    )
    assert curve_sentence(board_with(same, row("alpha0", "accuracy", (-1, -2, 1), against="m3po", p=0.3)), curve) == (
        "No value differs significantly from alpha = 0.5 (m3po) on a figure that has a better direction."
    )


def test_the_words_on_a_curve_claim_nothing_that_nobody_compared():
    curve = Curve("alpha", "m3po", {"alpha0": 0.0, "m3po": 0.5, "alpha1": 1.0})
    worse = row("alpha0", "accuracy", (-2, -3, -1), against="m3po", p=0.001)
    to_base = [row(name, "accuracy", (5, 4, 6), p=0.001) for name in curve.values]
    assert curve_sentence(small_board(to_base), curve) == ""
    # A figure without a better direction says nothing of better values, however much it moved.
    moved = row("alpha1", "words", (-2, -3, -1), against="m3po", p=0.001)
    assert curve_sentence(board_with(moved), curve) == ""
    said = "Against alpha = 0.5 (m3po): alpha = 0 (alpha0) is worse on POPE accuracy −2.0 (−3.0 to −1.0)."
    assert curve_sentence(board_with(worse, moved), curve) == f"{said} Not compared: alpha = 1 (alpha1)."
    both = board_with(worse, row("alpha1", "accuracy", (2, 1, 3), against="m3po", p=0.001))
    assert curve_sentence(both, curve).endswith("; alpha = 1 (alpha1) is better on POPE accuracy +2.0 (+1.0 to +3.0).")


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (("seeds and images", "seeds and images"), "Intervals cover the choice of test images (bootstrap, paired) and"),
        (("images", "images"), "Intervals cover the choice of test images alone"),
        (
            ("images", "seeds and images"),
            "Intervals cover the choice of test images (bootstrap, paired), and that of training seeds (Student's t on "
            "how they scatter) of the recipes that have 3 or more",
        ),
    ],
)
def test_how_it_is_decided_says_what_the_intervals_cover(over, said):
    rows = [row(f"recipe{n}", "accuracy", (1, 0.5, 2), p=0.01, over=one) for n, one in enumerate(over)]
    text = how_decided(small_board(rows))
    assert text.startswith(said) and "Holm's correction" in text


def test_the_figures_of_a_sentence_are_the_table_s():
    board = small_board([row("m3po", "accuracy", (1, 0.5, 2), p=0.01)])
    (text,) = paragraphs(board, "base")
    (found,) = (one for one in board.table.to_pylist() if one["recipe"] == "m3po")
    assert difference_text(found, board.columns[0]) in text
    assert board.table.schema == LEADERBOARD


def test_a_small_difference_is_not_shown_as_none():
    assert digits_for((0.04, 0.01, 0.07), 1) == 2
    assert digits_for((0.0, 0.0, 0.0), 1) == 1
    assert digits_for((0.0004, 1, 2), 1) == 3
    assert (signed(-0.04, 1), signed(0.04, 2), signed(-1.25, 1)) == ("0.0", "+0.04", "−1.2")
