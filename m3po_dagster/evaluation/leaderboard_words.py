"""What the leaderboard's figures say, in sentences made from the table: what is significant, and what is not.

Significant means: after Holm's correction over the recipes that the same figure compares. What holds only before the
correction is said apart, and never as a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from m3po_dagster.evaluation.board import Board, Column, Curve, Question, difference_text
from m3po_dagster.evaluation.comparison import ENOUGH_SEEDS, IMAGES, SEEDS_AND_IMAGES

NOTE = (
    "`**`: differs from {base} significantly, after correction for the number of recipes; `*`: only before that "
    "correction. `±`: standard deviation over training seeds. A win rate is compared with 50."
)


ON_A_FIGURE = "on a figure that has a better direction"

_KINDS = ("better", "worse", "moved", "unsure", "open", "alike")


@dataclass(frozen=True)
class Verdict:
    """The figures of a comparison by what can be said of them, each as `CHAIR-i −13.3 (−15.1 to −11.6)`.

    `moved` are significant where neither direction is better; `unsure` are so only before the correction; `open` are
    not told apart; `alike` are equal to the last answer, and only named.
    """

    better: tuple[str, ...]
    worse: tuple[str, ...]
    moved: tuple[str, ...]
    unsure: tuple[str, ...]
    open: tuple[str, ...]
    alike: tuple[str, ...]
    judged: int

    @property
    def words(self) -> str:
        """Whether one side is better, in a few words; figures without a better direction have no say."""
        if not self.judged:
            return "nothing says"
        have = "has" if self.judged == 1 else "have"
        if self.better and self.worse:
            return (
                f"in part: better on {len(self.better)} and worse on {len(self.worse)} of {_figures(self.judged)} that "
                "have a better direction"
            )
        if self.better:
            return f"yes, on {len(self.better)} of {_figures(self.judged)} that {have} a better direction"
        if self.worse:
            return (
                f"no: it is worse on {len(self.worse)} of {_figures(self.judged)} that {have} a better direction, and "
                "better on none"
            )
        if self.judged == 1:
            return "can't be told: the only figure that has a better direction doesn't differ significantly"
        return f"can't be told: none of {_figures(self.judged)} that have a better direction differs significantly"


def verdict(board: Board, ours: str, theirs: str) -> Verdict | None:
    """Ours against theirs on every figure that is shown; None where nothing compares the two.

    The table compares all recipes with a few: one of the two must be among those.
    """
    turned = theirs not in board.references
    found: dict[str, list[str]] = {name: [] for name in _KINDS}
    judged = compared = 0
    for column in board.shown:
        row = board.compared(theirs, column, ours) if turned else board.compared(ours, column, theirs)
        if row is None:
            continue
        compared += 1
        judged += column.better != 0
        if turned:
            row = {**row, "difference": -row["difference"], "ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
        kind = _kind(row, column)
        found[kind].append(column.name if kind == "alike" else f"{column.name} {difference_text(row, column)}")
    return Verdict(**{name: tuple(some) for name, some in found.items()}, judged=judged) if compared else None


def _kind(row: dict, column: Column) -> str:
    if row["difference"] == row["ci_low"] == row["ci_high"] == 0:
        return "alike"
    if not row["significant_corrected"]:
        return "unsure" if row["significant"] else "open"
    if not column.better:
        return "moved"
    return "better" if row["difference"] * column.better > 0 else "worse"


def answers(board: Board) -> list[str]:
    """A paragraph for each question of the board that the table answers, as Markdown."""
    return [said for question in board.questions if (said := answer(board, question))]


def answer(board: Board, question: Question) -> str | None:
    """The answer in words with the figures it stands on; None where nothing compares the two recipes."""
    found = verdict(board, question.ours, question.theirs)
    if found is None:
        return None
    return f"**{question.text}** {_capital(found.words)}. {question.ours} against {question.theirs}: {_groups(found)}"


def paragraphs(board: Board, against: str) -> list[str]:
    """A paragraph a recipe: what it does better and worse than `against`, and what can't be told; as Markdown."""
    said = []
    for recipe in board.recipes:
        if recipe in board.same_as:
            said.append(f"**{recipe}** is the same as {board.same_as[recipe]}: equal pairs, equal training.")
        elif found := verdict(board, recipe, against):
            said.append(f"**{recipe}** {_seeds(board, recipe, against)}: {_groups(found)}")
    return said


def curve_sentence(board: Board, curve: Curve) -> str:
    """Which values of a setting differ significantly from that of the recipe they are compared with; empty where none
    is compared with it on a figure that has a better direction."""
    at = f"{curve.setting} = {curve.values[curve.like]:g} ({curve.like})"
    said, quiet, unknown = [], [], []
    for recipe, value in curve.values.items():
        if recipe == curve.like:
            continue
        name, found = f"{curve.setting} = {value:g} ({recipe})", verdict(board, recipe, curve.like)
        if found is None or not found.judged:
            unknown.append(name)
        elif parts := [
            f"{how} on {_list(some)}" for how, some in (("better", found.better), ("worse", found.worse)) if some
        ]:
            said.append(f"{name} is {' and '.join(parts)}")
        else:
            quiet.append(name)
    if not said and not quiet:
        return ""
    if said:
        sentences = [f"Against {at}: {'; '.join(said)}."]
        if quiet:
            sentences.append(f"No other value differs significantly {ON_A_FIGURE}.")
    else:
        sentences = [f"No value differs significantly from {at} {ON_A_FIGURE}."]
    if unknown:
        sentences.append(f"Not compared: {_list(unknown)}.")
    return " ".join(sentences)


def how_decided(board: Board) -> str:
    """How significance is decided in this very table, in a paragraph."""
    over = {value for value in board.table.column("interval_over").to_pylist() if value is not None}
    covers = over.pop() if len(over) == 1 else "mixed"
    said = {
        SEEDS_AND_IMAGES: "Intervals cover the choice of test images (bootstrap, paired) and of training seeds "
        "(Student's t on how the seeds scatter).",
        IMAGES: "Intervals cover the choice of test images alone (bootstrap, paired): with fewer than "
        f"{ENOUGH_SEEDS} training seeds a recipe nothing is known of how another seed would do.",
    }.get(
        covers,
        "Intervals cover the choice of test images (bootstrap, paired), and that of training seeds (Student's t on "
        f"how they scatter) of the recipes that have {ENOUGH_SEEDS} or more; of the others it is not known how another "
        "seed would do.",
    )
    return (
        f"{said} Significant means that it holds at 5 % after Holm's correction over all recipes that the same figure "
        "compares with the same one. Figures are not corrected for one another: of twenty that don't change, one will "
        "look as if it did."
    )


def _seeds(board: Board, recipe: str, against: str) -> str:
    """`(3 seeds; intervals over seeds and images)`."""
    row = next(row for column in board.shown if (row := board.compared(recipe, column, against)))
    number = row["n_seeds"]
    trained = "not trained" if recipe == board.base else f"{number} seed{'s' if number != 1 else ''}"
    return f"({trained}; intervals over {row['interval_over']})"


def _groups(found: Verdict) -> str:
    groups = (
        ("better", found.better),
        ("worse", found.worse),
        ("changed, neither for better nor for worse", found.moved),
        ("significant only before the correction, so no result", found.unsure),
        ("not told apart", found.open),
        ("no difference at all", found.alike),
    )
    return ". ".join(_capital(f"{name}: {_list(some)}") for name, some in groups if some) + "."


def _list(texts: Sequence[str]) -> str:
    return ", ".join(texts)


def _figures(number: int) -> str:
    return f"{number} figure{'s' if number != 1 else ''}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
