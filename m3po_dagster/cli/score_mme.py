"""`m3po score mme`: MME's score of a folder of results in the official tool's layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3po_dagster.cli.options import JsonOption, explained
from m3po_dagster.cli.score_rules import ALL, YesNoRule, print_json, print_notes, print_table, scored
from m3po_dagster.evaluation.rules.yes_no import MME_RULES

if TYPE_CHECKING:
    from m3po_dagster.evaluation.results.mme_results import MmeScores

_SHARES = {"yes_ratio": "read as yes, %", "other": "read as neither, %", "format": "starts with yes or no, %"}


def mme(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS_DIR",
            help="Folder of <category>.txt files, lines of image, question, ground truth and response parted by tabs.",
        ),
    ],
    rule: YesNoRule = "official",
    as_json: JsonOption = False,
) -> None:
    """MME: perception, cognition, total and every category, as the official eval_tool scores them.

    Exit code 0; 1 for files that can't be scored, 2 for an option that can't be used.
    """
    from m3po_dagster.evaluation.question import BenchmarkError
    from m3po_dagster.evaluation.results.mme_results import read_mme, score_mme

    with explained(BenchmarkError, status=1):
        questions, answers = read_mme(results)
        found = scored(rule, MME_RULES, lambda name: score_mme(questions, answers, name))
    first = next(iter(found.values()))
    if as_json:
        print_json(rule, {name: one.as_json() for name, one in found.items()})
        print_notes(first.notes(), err=True)
    elif rule == ALL:
        print_table(["category", "questions", *found], _side_by_side(found), first.notes())
    else:
        print_table(["category", "questions", "acc", "acc+", "score"], _rows(first), first.notes())


def _rows(scores: "MmeScores") -> Iterator[list[str]]:
    for name, one in scores.categories.items():
        yield [name, str(scores.questions[name]), f"{one.acc:.4f}", f"{one.acc_plus:.4f}", f"{one.score:.2f}"]
    yield []
    for name, score in scores.parts.items():
        yield [name, "", "", "", f"{score:.2f}"]
    yield []
    for name, title in _SHARES.items():
        yield [title, "", "", "", f"{100 * scores.shares[name]:.2f}"]


def _side_by_side(found: "Mapping[str, MmeScores]") -> Iterator[list[str]]:
    first = next(iter(found.values()))
    for name, number in first.questions.items():
        yield [name, str(number), *(f"{one.categories[name].score:.2f}" for one in found.values())]
    yield []
    for name in first.parts:
        yield [name, "", *(f"{one.parts[name]:.2f}" for one in found.values())]
    yield []
    for name, title in _SHARES.items():
        yield [title, "", *(f"{100 * one.shares[name]:.2f}" for one in found.values())]
